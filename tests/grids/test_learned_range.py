"""Learned ranges against OmniQuant's quantizer: values, gradients, and the grid they lead to."""

from dataclasses import replace

import pytest
import torch
from oracles.omniquant import fake_quant

from q2n.errors import InputError
from q2n.grids.granularity import PerChannel, PerGroup
from q2n.grids.learned_range import Clipping, LearnedRange, clipped
from q2n.grids.uniform import UniformGrid
from q2n.linalg.statistics import InputStatistics
from q2n.method import LayerProblem
from q2n.methods.gptq import GPTQ
from q2n.methods.rtn import RTN

SIZES = [(2, 8, False), (3, 24, False), (4, 12, True), (2, 24, True)]


def layer(kind: str) -> torch.Tensor:
    """A weight with both signs in every group: Gaussian, or with a few large entries and rows of
    different sizes as in a model."""
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(10, 24, generator=generator).abs()
    weight[:, ::2] *= -1
    if kind == "heavy":
        weight = 0.02 * weight * weight.abs() ** 2 * torch.linspace(0.2, 3, 10).unsqueeze(1)
    return weight


def grid(bits: int, size: int, symmetric: bool = False) -> UniformGrid:
    granularity = PerChannel() if size == 24 else PerGroup(size)
    return UniformGrid(bits=bits, symmetric=symmetric, granularity=granularity)


def with_logits(bits, size, symmetric, weight, dtype=torch.float32) -> LearnedRange:
    """A form whose logits are anything."""
    form = LearnedRange(grid(bits, size, symmetric), weight, dtype, "layer")
    generator = torch.Generator().manual_seed(2)
    for logits in form.parameters():
        logits.data += 2 * torch.randn(logits.shape, generator=generator) - 2
    return form


@pytest.mark.parametrize("kind", ["gaussian", "heavy"])
@pytest.mark.parametrize(("bits", "size", "symmetric"), SIZES)
def test_values_and_gradients_are_omniquants(kind, bits, size, symmetric):
    weight = layer(kind)
    form = with_logits(bits, size, symmetric, weight)
    above = torch.randn(weight.shape, generator=torch.Generator().manual_seed(3))
    (form.weight(torch.float32) * above).sum().backward()
    low, high = (x.detach().clone().requires_grad_() for x in form.parameters())
    expected = fake_quant(weight, low, high, bits, size, symmetric)
    (expected * above).sum().backward()
    assert torch.equal(form.weight(torch.float32), expected)
    for actual, logits in ((form.low_logit, low), (form.high_logit, high)):
        # sums of at most 24 float32 products, relative to the largest gradient
        torch.testing.assert_close(
            actual.grad, logits.grad, rtol=1e-5, atol=1e-6 * float(logits.grad.abs().max())
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("bits", "size", "symmetric"), SIZES)
def test_the_method_rounds_what_was_learned(bits, size, symmetric, dtype):
    weight = layer("heavy")
    form = with_logits(bits, size, symmetric, weight, dtype)
    problem = LayerProblem(
        name="layer",
        weight=weight,
        statistics=None,
        clipping=Clipping(*(x.detach() for x in form.clipping())),
        scale_dtype=dtype,
    )
    groups = -1 if size == 24 else size
    method = RTN(bits=bits, group_size=groups, symmetric=symmetric, clip="learned")
    rounded = method.quantize(problem)
    assert torch.equal(rounded.dequantize(), form.weight(torch.float32).detach())
    assert rounded.scale.dtype == dtype


def test_trials_go_around_the_learned_range():
    weight, half = layer("gaussian"), torch.full((10, 3), 0.5)
    statistics = InputStatistics(24)
    statistics.update(torch.randn(60, 24, generator=torch.Generator().manual_seed(5)))
    problem = LayerProblem(
        name="layer", weight=weight, statistics=statistics, clipping=Clipping(half, half)
    )
    options = {"bits": 3, "group_size": 8}
    learned = GPTQ(clip="learned", clip_epochs=3, **options)
    fitted = clipped(grid(3, 8), Clipping(half, half)).fit(weight, torch.float32, "layer")
    assert torch.equal(learned.quantize(problem).scale, fitted[0])
    assert torch.equal(
        learned.in_whole_range.quantize(problem).scale, GPTQ(**options).quantize(problem).scale
    )
    tried = replace(learned, range_trials=True).quantize(problem)
    assert len(tried.record["range_shares"]) == 5  # learned, minmax, three around the learned one


def test_whole_ranges_are_minmax():
    weight = layer("heavy")
    for size in (8, 24):
        plain, ones = grid(3, size), torch.ones(10, 24 // size)
        actual = clipped(plain, Clipping(ones, ones)).fit(weight, torch.float32, "layer")
        for found, expected in zip(actual, plain.fit(weight, torch.float32, "layer"), strict=True):
            assert torch.equal(found, expected)


def test_a_ragged_group_has_its_own_range():
    weight = layer("gaussian")
    ragged = UniformGrid(bits=3, granularity=PerGroup(9, True))
    dense = LearnedRange(ragged, weight, torch.float32, "layer").weight(torch.float32)
    last = LearnedRange(grid(3, 24), weight[:, 18:].contiguous(), torch.float32, "layer")
    assert dense.shape == weight.shape
    assert torch.equal(dense[:, 18:], last.weight(torch.float32))


def test_weights_of_one_sign_and_zeros_are_held():
    """OmniQuant's range need not contain 0; here a zero point is a code."""
    weight = torch.stack([torch.linspace(1, 2, 24), -torch.linspace(1, 2, 24), torch.zeros(24)])
    form = LearnedRange(grid(3, 24), weight, torch.float32, "layer")
    dense = form.weight(torch.float32)
    assert (dense[2] == 0).all()
    assert (dense[:2] - weight[:2]).abs().max() < 2 / 7
    dense.sum().backward()
    assert all(torch.isfinite(x.grad).all() for x in form.parameters())


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        (RTN, {"clip_epochs": 5}, "do nothing without --clip learned"),
        (RTN, {"clip_rate": 0.1, "clip": "mse"}, "do nothing without --clip learned"),
        (GPTQ, {"clip_target": "both"}, "do nothing without --clip learned"),
        (RTN, {"clip": "learned", "clip_epochs": 0}, "clip_epochs is 0"),
        (RTN, {"clip": "learned", "clip_target": "own"}, "clip_target is 'own'"),
        (RTN, {"clip": "learned", "grid": "signed", "symmetric": True}, "no range to learn"),
        (
            GPTQ,
            {"clip": "learned", "static_groups": False, "group_size": 8, "act_order": False},
            "use --static-groups",
        ),
    ],
)
def test_options_that_do_not_fit_are_refused(method, options, message):
    with pytest.raises(InputError, match=message) as refused:
        method(**options)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("options", "epochs", "both"),
    [
        ({"bits": 3}, 20, False),
        ({"bits": 2}, 40, True),
        ({"bits": 2, "clip_epochs": 7, "clip_target": "full_precision"}, 7, False),
        ({"bits": 4, "clip_target": "both"}, 20, True),
    ],
)
def test_epochs_and_targets_follow_the_bits(options, epochs, both):
    fit = RTN(clip="learned", **options).range_fit
    assert (fit.epochs, fit.both_targets, fit.rate) == (epochs, both, 0.01)
    assert RTN(bits=2).range_fit is None
