"""A layer behind a quantized prefix, with the tokens of both models, for tests."""

import torch

from q2n.linalg.required_statistics import RequiredStatistics
from q2n.linalg.statistics import InputStatistics
from q2n.method import LayerProblem

ROWS, COLUMNS, TOKENS = 12, 32, 240
# float32 moments of 240 tokens against float64 tokens
SAME = {"rtol": 0, "atol": 3e-5}


def problem(name="h.0.up_proj", seed=0, noise=0.3, **options):
    """A layer, its input behind a quantized prefix and that of the full-precision model."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.logspace(0, -1, COLUMNS)
    mix = torch.linalg.qr(torch.randn(COLUMNS, COLUMNS, generator=generator))[0]
    x_full = (torch.randn(TOKENS, COLUMNS, generator=generator) * spread) @ mix
    bend = torch.randn(COLUMNS, COLUMNS, generator=generator) / COLUMNS**0.5
    x = x_full + noise * (x_full @ bend + 0.2 * torch.randn(x_full.shape, generator=generator))
    weight = torch.randn(ROWS, COLUMNS, generator=generator)
    given = LayerProblem(name=name, weight=weight, statistics=gathered(x, x_full), **options)
    return given, x, x_full


def gathered(x, x_full):
    statistics = InputStatistics(x.shape[1], RequiredStatistics.GRAM | RequiredStatistics.CROSS)
    statistics.update(x, x_full)
    return statistics


def on_tokens(given, layer, x, target):
    """What the oracles take, in float64."""
    return (t.double() for t in (given.weight, layer.dequantize(), x, target))


def loss(given, layer, x, target):
    """The distance of each row's output from the target."""
    weight, quantized, x, target = on_tokens(given, layer, x, target)
    return ((target @ weight.T - x @ quantized.T) ** 2).sum(0)


def factors(after, before):
    return (after.scale / before.scale).double()
