"""Methods on the grids of ggml's blocks."""

import numpy as np
import pytest
import torch
from grids.test_blocks import nearest
from oracles.codebook import feedback_sweep

from q2n.block_types import BLOCK_TYPES
from q2n.errors import InputError
from q2n.grids.blocks import fit_blocks
from q2n.linalg.required_statistics import RequiredStatistics
from q2n.linalg.statistics import InputStatistics
from q2n.method import LayerProblem
from q2n.methods.gptq import GPTQ
from q2n.methods.owq import OWQ
from q2n.methods.rtn import RTN

TYPES = pytest.mark.parametrize("name", BLOCK_TYPES)
COLUMNS, ROWS = 256, 3


def problem(columns=COLUMNS):
    generator = torch.Generator().manual_seed(0)
    statistics = InputStatistics(columns, RequiredStatistics.GRAM, dtype=torch.float64)
    mix = torch.randn(columns, columns, generator=generator)
    statistics.update((torch.randn(2 * columns, columns, generator=generator) @ mix).double())
    weight = torch.randn(ROWS, columns, generator=generator).double()
    return LayerProblem(name="h.0.up", weight=weight, statistics=statistics)


def method(kind, name, **options):
    return kind(grid=name, bits=BLOCK_TYPES[name].bits, **options)


@TYPES
@pytest.mark.parametrize("act_order", [True, False])
def test_gptq_is_its_definition_on_the_frozen_grid(name, act_order):
    given = problem()
    layer = method(GPTQ, name, act_order=act_order).quantize(given)
    gram = given.statistics.gram
    frame = fit_blocks(BLOCK_TYPES[name], given.weight, gram.diagonal(), "layer")
    points = frame.steps().double().unsqueeze(-1) * torch.tensor(frame.type.levels)
    if frame.minima() is not None:
        points = points + frame.minima().double().unsqueeze(-1)
    points = points.numpy()

    def round_column(values, column):
        own = points[:, column // frame.type.block]
        at = np.abs(values[:, None] - own).argmin(1)
        return own[np.arange(ROWS), at]

    order = np.argsort(-gram.diagonal().numpy(), kind="stable") if act_order else range(COLUMNS)
    expected = feedback_sweep(
        given.weight.numpy(), gram.numpy(), np.array(order), 0.01, round_column
    )
    np.testing.assert_allclose(layer.dequantize(), expected, rtol=1e-5, atol=1e-5)


@TYPES
def test_rtn_takes_the_nearest_level(name):
    given = problem()
    layer = method(RTN, name).quantize(given)
    weight = given.weight.float()
    best = (layer.dequantize() - weight).abs()
    other = layer.with_record()
    codes = nearest(other, weight)
    tried = fit_blocks(BLOCK_TYPES[name], weight, None, "layer")
    expected = (type(layer)(**{**vars(tried), "codes": codes}).dequantize() - weight).abs()
    torch.testing.assert_close(best, expected, rtol=1e-4, atol=1e-5)


@TYPES
def test_feedback_lowers_the_output_error(name):
    given = problem()

    def error(layer):
        off = given.weight - layer.dequantize()
        return float(((off @ given.statistics.gram) * off).sum())

    assert error(method(GPTQ, name).quantize(given)) < 0.8 * error(
        method(RTN, name).quantize(given)
    )


def test_a_width_that_does_not_fit_falls_back_and_says_so():
    layer = method(GPTQ, "q4_k").quantize(problem(columns=96))
    assert layer.block_type == "iq4_nl" and layer.record["fell_back_on"] == "IQ4_NL"
    assert "fell_back_on" not in method(GPTQ, "q4_k").quantize(problem()).record


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 3}, "codes of q4_k have 4 bits, not 3"),
        ({"group_size": 32}, "blocks of q4_k have their own groups and zero points"),
        ({"symmetric": True}, "blocks of q4_k have their own groups and zero points"),
    ],
)
def test_options_that_blocks_choose_themselves_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        GPTQ(grid="q4_k", **{"bits": 4, **options})


def test_a_width_without_blocks_is_refused_before_any_work():
    said = r"h.0.up has 48 inputs, and q4_k has blocks of 256 .* --ignore up$"
    with pytest.raises(InputError, match=said):
        GPTQ(grid="q4_k").check("h.0.up", (8, 48))


def test_outliers_in_16_bits_have_no_place_in_blocks():
    with pytest.raises(InputError, match="grid is 'q4_k'"):
        OWQ(grid="q4_k")
