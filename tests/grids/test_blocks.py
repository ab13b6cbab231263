"""Grids of ggml's blocks against brute force, gguf-py's quantizer, and their own conditions."""

from dataclasses import replace
from itertools import product

import gguf
import numpy as np
import pytest
import torch

from q2n.block_types import BLOCK_TYPES, fitting
from q2n.errors import NumericalError
from q2n.grids.blocks import fit_blocks
from q2n.grids.fitted import block_grid

TYPES = pytest.mark.parametrize("name", BLOCK_TYPES)
SIMPLE = [name for name, kind in BLOCK_TYPES.items() if kind.scale_bits is None]
SLACK = {2: 1.05, 4: 1.2, 5: 1.4, 8: 1.7}
"""The more levels, the luckier the best of thousands of pairs."""
TWO_LEVELS = [name for name in BLOCK_TYPES if name not in SIMPLE]


def gaussian(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def rounded(name, weight, energy=None):
    """Round to nearest on the fitted grid."""
    return block_grid(BLOCK_TYPES[name], weight, energy, "layer").nearest()


def errors(layer, weight, energy=None):
    """Of every block."""
    squares = (layer.dequantize() - weight).square() * (1 if energy is None else energy)
    return squares.unflatten(1, (-1, layer.type.block)).sum(-1)


@TYPES
def test_weights_on_such_a_grid_come_back(name):
    """d is a power of 2, so that it is found in float16 whatever the rounding on the way."""
    kind = BLOCK_TYPES[name]
    weight = gaussian(4, 2 * kind.super_block)
    layer = rounded(name, weight)
    layer = replace(layer, d=torch.full_like(layer.d, 2.0**-6).copysign(layer.d))
    if layer.m is not None:
        layer = replace(layer, m=torch.full_like(layer.m, 2.0**-5))
    again = rounded(name, layer.dequantize()).dequantize()
    near = 0.01 if kind.scale_bits is None else 0.02  # not every s and t is tried
    assert (again - layer.dequantize()).norm() <= near * layer.dequantize().norm()


@pytest.mark.parametrize("name", SIMPLE)
def test_no_pair_of_a_fine_grid_is_much_better(name):
    kind, weight = BLOCK_TYPES[name], gaussian(6, BLOCK_TYPES[name].block, seed=1)
    energy = gaussian(kind.block, seed=2).exp()
    found = errors(rounded(name, weight, energy), weight, energy / energy.mean()).squeeze(1)
    levels = np.array(kind.levels)
    for x, error in zip(weight.numpy(), found.tolist(), strict=True):
        reach = np.abs(x).max()
        steps = np.linspace(-1, 1, 401) * 1.3 * 2 * reach / (levels[-1] - levels[0])
        minima = np.linspace(-1.3, 0, 60) * reach if kind.has_minimum else [0]
        omega = (energy / energy.mean()).numpy()
        pairs = product(steps[steps > 0] if kind.has_minimum else steps, minima)
        best = min(
            (omega * np.abs(x[:, None] - (levels * a + b)).min(1) ** 2).sum() for a, b in pairs
        )
        assert error <= SLACK[kind.bits] * best + 1e-9


@pytest.mark.parametrize("name", ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0"])
def test_it_beats_the_rounding_of_gguf(name):
    weight = gaussian(16, 256, seed=3)
    kind = gguf.GGMLQuantizationType[name.upper()]
    theirs = gguf.quants.dequantize(gguf.quants.quantize(weight.numpy(), kind), kind)
    ours = rounded(name, weight).dequantize()
    assert (ours - weight).norm() < 0.97 * (torch.from_numpy(theirs) - weight).norm()


@pytest.mark.parametrize("name", TWO_LEVELS)
def test_no_other_d_or_m_suits_the_codes_better(name):
    weight, energy = gaussian(3, 512, seed=4), gaussian(512, seed=5).exp()
    layer = rounded(name, weight, energy)

    def error(changed):
        return errors(changed, weight, energy).sum()

    for factor in (0.98, 1.02):
        assert error(replace(layer, d=(layer.d * factor).half())) > error(layer)
        if layer.m is not None:
            assert error(replace(layer, m=(layer.m * factor).half())) > error(layer)


@pytest.mark.parametrize("name", TWO_LEVELS)
def test_no_neighbour_of_s_or_t_is_better(name):
    """Each with codes rounded anew, as the search does; at most a few in a hundred, for d and m
    moved after the last look at them."""
    kind, weight = BLOCK_TYPES[name], gaussian(8, 512, seed=6)
    layer = rounded(name, weight)
    best = errors(layer, weight)
    for part in ("s", "t") if kind.has_minimum else ("s",):
        for move in (-1, 1):
            moved = (getattr(layer, part).int() + move).clamp(0, 2**kind.scale_bits - 1)
            changed = replace(layer, **{part: moved.to(torch.uint8)})
            codes = nearest(changed, weight)
            better = errors(replace(changed, codes=codes), weight) < 0.999 * best
            assert better.float().mean() < 0.05


def nearest(layer, weight):
    """Codes by looking at every level."""
    levels = torch.tensor(layer.type.levels, dtype=torch.float32)
    points = layer.steps().unsqueeze(-1) * levels
    if layer.minima() is not None:
        points = points + layer.minima().unsqueeze(-1)
    blocks = weight.unflatten(1, (-1, layer.type.block))
    distance = (blocks.unsqueeze(-1) - points.unsqueeze(2)).abs()
    return distance.argmin(-1).flatten(1).to(torch.uint8)


@TYPES
def test_columns_with_more_input_are_rounded_better(name):
    weight, energy = gaussian(64, 256, seed=7), torch.ones(256)
    energy[::8] = 100
    plain, weighed = (rounded(name, weight, e).dequantize() - weight for e in (None, energy))
    assert weighed[:, ::8].norm() < plain[:, ::8].norm()


@pytest.mark.parametrize("name", ["q2_0", "q4_0", "q3_k"])
def test_a_step_may_be_negative(name):
    """The side with one level more is where the weights reach farther."""
    weight = gaussian(2, 256, seed=8).abs()
    up, down = rounded(name, weight), rounded(name, -weight)
    assert torch.equal(up.dequantize(), -down.dequantize())
    assert torch.cat([up.steps(), down.steps()]).lt(0).any()


@TYPES
def test_zeros_stay_zero(name):
    weight = torch.zeros(2, 512)
    weight[1, 300:] = gaussian(212, seed=9)
    dense = rounded(name, weight).dequantize()
    assert not dense[0].any() and torch.isfinite(dense).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e9])
def test_weights_that_float16_cannot_scale_are_refused(bad):
    weight = gaussian(2, 64)
    weight[1, 3] = bad
    with pytest.raises(NumericalError, match="layer: its weight holds NaN or Inf, or more than"):
        fit_blocks(BLOCK_TYPES["q2_0"], weight, None, "layer")


def test_widths_fall_back_to_a_type_that_fits():
    assert fitting("q4_k", 576) is BLOCK_TYPES["iq4_nl"]
    assert fitting("q4_k", 1536) is BLOCK_TYPES["q4_k"]
    assert fitting("q2_k", 576) is BLOCK_TYPES["q2_0"]
    assert fitting("q2_k", 96) is None and fitting("q4_0", 96) is BLOCK_TYPES["q4_0"]
