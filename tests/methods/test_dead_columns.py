"""Columns whose input is 0 on all of the calibration text, or nearly: every method and wrapper."""

import pytest
import torch

from q2n.layers.outliers import OutlierLinear
from q2n.layers.partly_binary import PartlyBinaryLinear
from q2n.linalg.required_statistics import RequiredStatistics
from q2n.linalg.statistics import InputStatistics
from q2n.method import LayerProblem
from q2n.methods import GPTQ, LDLQ, OWQ, PBLLM, RTN, LeanQuant
from q2n.wrappers.correction import InputErrorCorrection
from q2n.wrappers.incoherence import Incoherence
from q2n.wrappers.nullspace import NullSpace
from q2n.wrappers.output_scales import OutputScales

ROWS, COLUMNS, TOKENS = 12, 48, 200
DEAD = [0, 5, 20, 47]
ALL = list(range(COLUMNS))
NEARLY = [1e-15, 1e-25]
"""Of the others' inputs. 1e-25: squares that float32 rounds to 0, products that it does not."""

FEEDBACK = {
    "gptq": GPTQ(bits=3),
    "gptq searched": GPTQ(bits=3, clip="scale_zero"),
    "gptq undamped": GPTQ(bits=3, damping=0.0),
    "ldlq": LDLQ(bits=3),
    "ldlq sorted": LDLQ(bits=3, order="sorted", grid="minmax"),
    "ldlq lloyd-max": LDLQ(bits=3, grid="lloyd-max", descent_passes=0),
    "leanquant": LeanQuant(bits=3),
    "leanquant undamped": LeanQuant(bits=3, damping=0.0),
    "leanquant uniform": LeanQuant(bits=3, levels="uniform"),
    "owq": OWQ(bits=3, target_rank=4),
    "pbllm": PBLLM(low="2bit"),
    "pbllm magnitude": PBLLM(low="2bit", saliency="magnitude"),
}
EVERY = {"rtn": RTN(bits=3), "ldlq trellis": LDLQ(bits=3, grid="trellis"), **FEEDBACK}


def correction(inner, **options):
    return InputErrorCorrection(inner=inner, **options)


WRAPPERS = {
    "correction": (correction, {}),
    "correction held out": (correction, {"correction_held_out": True}),
    "correction without ridge": (correction, {"correction_ridge": 0.0}),
    "nullspace": (NullSpace, {}),
    "nullspace svd": (NullSpace, {"decomposition": "svd"}),
    "nullspace rank": (NullSpace, {"rule": "matrix_rank"}),
    "nullspace adam_nscl": (NullSpace, {"rule": "adam_nscl"}),
    "nullspace positions": (NullSpace, {"gram": "mean_activation"}),
    "scales": (OutputScales, {}),
    "scales held out": (OutputScales, {"scales_held_out": True}),
    "scales principal": (OutputScales, {"scales_directions": "principal"}),
    "scales spectral": (OutputScales, {"scales_directions": "spectral", "scales_held_out": True}),
    "random basis": (Incoherence, {"incoherence_rescale": True}),
}


def layer(shrink=0.0, columns=DEAD, method=FEEDBACK["gptq"]):
    """A layer with correlated inputs, some of them multiplied by `shrink`, and what the method
    needs to know of them."""
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(COLUMNS, COLUMNS, generator=generator)
    x_full = torch.randn(4, TOKENS // 4, COLUMNS, generator=generator) @ mix
    x = x_full + 0.3 * torch.randn(x_full.shape, generator=generator)
    x[..., columns] *= shrink
    weight = torch.randn(ROWS, COLUMNS, generator=generator)
    statistics = InputStatistics(COLUMNS, method.required_statistics | RequiredStatistics.GRAM)
    statistics.update(x, x_full)
    return LayerProblem(name="h.0.up", weight=weight, statistics=statistics)


def on_the_grid_of_dead_columns(found):
    """Which weights of the layer lie on the same grid as those of the dead columns."""
    if isinstance(found, PartlyBinaryLinear):
        return found.low
    same = torch.ones(ROWS, COLUMNS, dtype=torch.bool)
    if isinstance(found, OutlierLinear):
        same[:, found.columns.long()] = False
    return same


@pytest.mark.parametrize("shrink", [0.0, *NEARLY])
@pytest.mark.parametrize("name", [name for name in FEEDBACK if "undamped" not in name])
def test_dead_columns_get_the_level_nearest_to_their_weight(name, shrink):
    given = layer(shrink)
    found = FEEDBACK[name].quantize(given)
    dense, same = found.dequantize(), on_the_grid_of_dead_columns(found)
    assert torch.isfinite(dense).all()
    for row, column in torch.cartesian_prod(torch.arange(ROWS), torch.tensor(DEAD)).tolist():
        if same[row, column]:
            weight = given.weight[row, column]
            nearest = (dense[row, same[row]] - weight).abs().min()
            # a weight half-way between two levels, in float32
            assert (dense[row, column] - weight).abs() <= nearest + 1e-5


@pytest.mark.parametrize(
    ("name", "wrapper"),
    [*(("gptq", wrapper) for wrapper in WRAPPERS), *((name, "random basis") for name in EVERY)],
)
@pytest.mark.parametrize("columns", [DEAD, ALL])
def test_every_method_and_wrapper_copes(name, wrapper, columns):
    wrap, options = WRAPPERS[wrapper]
    method = wrap(inner=EVERY[name], **options)
    for shrink in (0.0, *NEARLY):
        found = method.quantize(layer(shrink, columns, method))
        assert torch.isfinite(found.dequantize()).all()


@pytest.mark.parametrize("name", EVERY)
def test_a_site_without_input_is_left_to_rounding(name):
    """Neither corrected nor scaled."""
    around = [correction, lambda x: OutputScales(inner=x), lambda x: NullSpace(inner=x)]
    alone = EVERY[name].quantize(layer(0.0, ALL))
    for wrap in around:
        method = wrap(EVERY[name])
        assert torch.equal(
            method.quantize(layer(0.0, ALL, method)).dequantize(), alone.dequantize()
        )


def test_corrected_weights_of_dead_columns_are_the_original_ones():
    method = correction(RTN(bits=8), correction_held_out=True)
    given = layer(method=method)
    change = method.quantize(given).dequantize() - given.weight
    half_a_step = 0.5 * (given.weight.amax(1) - given.weight.amin(1)) / 255
    assert (change[:, DEAD].abs() <= 1.5 * half_a_step.unsqueeze(1)).all()
    assert change.abs().max() > 10 * half_a_step.max()
