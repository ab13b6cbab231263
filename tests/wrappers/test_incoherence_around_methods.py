"""Any method in a random basis, and the wrappers within it or around it."""

import dataclasses

import oracles
import pytest
import torch
from two_streams import COLUMNS, ROWS, gathered, problem
from witness import witness

from q2n.config.owners import build_method
from q2n.config.presets import RELEASED_NULLSPACE
from q2n.config.reading import read_settings
from q2n.layers.rotated import RotatedLinear
from q2n.linalg.output_error import OutputError
from q2n.linalg.required_statistics import RequiredStatistics
from q2n.linalg.statistics import InputStatistics
from q2n.methods.gptq import GPTQ
from q2n.methods.ldlq import LDLQ
from q2n.methods.leanquant import LeanQuant
from q2n.methods.owq import OWQ
from q2n.methods.pbllm import PBLLM
from q2n.methods.rtn import RTN
from q2n.wrappers.incoherence import Incoherence
from q2n.wrappers.nullspace import NullSpace
from q2n.wrappers.output_scales import OutputScales

METHODS = {
    "rtn": RTN(bits=3),
    "rtn-groups": RTN(bits=2, group_size=8, clip="scale_zero"),
    "gptq": GPTQ(bits=3),
    "gptq-signed": GPTQ(bits=3, grid="signed", symmetric=True, clip="mse", act_order=False),
    "ldlq": LDLQ(bits=2),
    "ldlq-lloyd-max": LDLQ(bits=2, grid="lloyd-max"),
    "ldlq-trellis": LDLQ(bits=2, grid="trellis"),
    "leanquant": LeanQuant(bits=3),
    "leanquant-uniform": LeanQuant(bits=3, levels="uniform", group_size=8),
    "pbllm": PBLLM(low_fraction=0.8),
    "owq": OWQ(bits=2, target_rank=3),
}
every_method = pytest.mark.parametrize("inner", METHODS.values(), ids=METHODS)


def output_error(x, weight, layer) -> float:
    """Of the tokens, in float64."""
    error = x.double() @ (weight - layer.dequantize()).double().T
    return float((error**2).sum() / ((x.double() @ weight.double().T) ** 2).sum())


def in_basis(basis, given, x, x_full):
    """The problem as the method sees it, built from rotated tokens."""
    statistics = gathered(basis.inputs(x), basis.inputs(x_full))
    return dataclasses.replace(given, weight=basis.weight(given.weight), statistics=statistics)


@pytest.mark.parametrize("rescale", [False, True])
@every_method
def test_output_error_is_that_of_the_original_space(inner, rescale):
    given, x, x_full = problem()
    method = Incoherence(inner=inner, incoherence_rescale=rescale)
    layer = method.quantize(given)
    assert isinstance(layer, RotatedLinear) and layer.shape == (ROWS, COLUMNS)
    within = in_basis(layer.basis, given, x, x_full)
    own = output_error(x, given.weight, layer)
    # the basis changes no output: rotated back it is the error of the layer within
    rotated = output_error(layer.basis.inputs(x), within.weight, layer.inner)
    assert own == pytest.approx(rotated, rel=1e-3)
    by_moments = OutputError.of(given.weight, layer.dequantize(), given.statistics.gram).relative()
    assert by_moments == pytest.approx(own, rel=1e-3)
    assert 0 < own < 0.5
    assert layer.record == layer.inner.record


@every_method
def test_method_within_equals_method_in_that_basis(inner):
    """Measured on rotated tokens instead of by rotated moments: nearly all codes are the same."""
    given, x, x_full = problem()
    layer = Incoherence(inner=inner).quantize(given)
    alone = inner.quantize(in_basis(layer.basis, given, x, x_full))
    assert type(layer.inner) is type(alone)
    ours, theirs = layer.inner.dequantize(), alone.dequantize()
    # float32 sums in another order: a code that is moved is an exception
    assert (ours - theirs).norm() < 0.2 * theirs.norm()
    assert ((ours - theirs).abs() < 1e-3 * theirs.abs().max()).float().mean() > 0.8


@pytest.mark.parametrize("around", ["nothing", "output scales"])
@every_method
def test_any_representation_survives_its_tensors_in_a_basis(inner, around):
    given, _, _ = problem(scale_dtype=torch.float16)
    method = Incoherence(inner=inner, incoherence_rescale=True)
    if around == "output scales":
        method = OutputScales(inner=method)
    layer = method.quantize(given)
    again = RotatedLinear.from_tensors(layer.tensors(), layer.metadata())
    assert torch.equal(again.dequantize(), layer.dequantize())
    assert (again.output_scale is None) == (around == "nothing")
    assert again.stored_bits == layer.stored_bits > layer.inner.stored_bits
    assert method.storage.kind == layer.kind


@pytest.mark.parametrize("around", ["wrappers", "method"])
@pytest.mark.parametrize("name", METHODS)
def test_correction_and_output_scales_on_either_side(name, around):
    """Both come closer to the full-precision model's output, wherever the basis is."""
    given, x, x_full = problem()
    goal = x_full.double() @ given.weight.double().T

    def loss(**settings):
        read = read_settings({"incoherence": True, "incoherence_around": around, **settings})
        method = build_method(read)
        layer = _with(method, METHODS[name]).quantize(given)
        return float(((goal - x.double() @ layer.dequantize().double().T) ** 2).sum()), layer

    alone, _ = loss()
    corrected, _ = loss(correct=True)
    scaled, layer = loss(output_scales=True)
    both, _ = loss(correct=True, output_scales=True)
    assert corrected < alone and scaled < alone
    assert both < corrected
    assert (layer.output_scale is None) == (around == "wrappers")
    assert {"scales_mean", "scales_ridge"} <= layer.record.keys()


def _with(method, innermost):
    """The wrappers of `method` around another innermost one."""
    if not hasattr(method, "inner"):
        return innermost
    return dataclasses.replace(method, inner=_with(method.inner, innermost))


@every_method
def test_record_of_q2n_within_reports_original_output_error(inner):
    given, x, _ = problem()
    before = Incoherence(inner=inner).quantize(given)
    after = Incoherence(inner=NullSpace(inner=inner)).quantize(given)
    record = after.record
    assert record["output_error_before"] == pytest.approx(
        output_error(x, given.weight, before), rel=2e-3
    )
    assert record["output_error"] == pytest.approx(output_error(x, given.weight, after), rel=2e-3)
    assert not torch.equal(before.dequantize(), after.dequantize())


def test_the_released_step_works_within_a_basis():
    """Its statistics of positions are rotated too."""
    generator = torch.Generator().manual_seed(0)
    needs = RequiredStatistics.GRAM | RequiredStatistics.POSITIONS
    statistics = InputStatistics(COLUMNS, needs)
    x = torch.randn(4, 60, COLUMNS, generator=generator) + 0.3
    statistics.update(x)
    given, _, _ = problem()
    given = dataclasses.replace(given, statistics=statistics)
    inner = NullSpace(inner=GPTQ(bits=2), **RELEASED_NULLSPACE["gptq"])
    layer = Incoherence(inner=inner).quantize(given)
    assert 0.95 < layer.record["alpha_mean"] < 1.05 and layer.record["alpha_std"] > 0
    rotated = InputStatistics(COLUMNS, needs)
    rotated.update(layer.basis.inputs(x.flatten(0, 1)).unflatten(0, (4, -1)))
    probe, problems = witness()
    Incoherence(inner=probe).quantize(given)
    (seen,) = problems
    expected = rotated.position_gram
    error = (seen.statistics.position_gram - expected).abs().max()
    assert error < 1e-4 * expected.abs().max()  # float32 means over 4 windows, rotated


@pytest.mark.parametrize("target", ["own", "full_precision"])
@pytest.mark.parametrize("inner", [RTN(bits=3), GPTQ(bits=2, group_size=8)], ids=["rtn", "gptq"])
def test_output_scales_after_q2n_fit_what_q2n_left(inner, target):
    given, x, x_full = problem()
    stepped = NullSpace(inner=inner).quantize(given)
    both = OutputScales(inner=NullSpace(inner=inner), target=target).quantize(given)
    assert torch.equal(both.codes, stepped.codes)
    goal = x if target == "own" else x_full
    expected = oracles.least_squares_output_alpha(
        *(t.double() for t in (given.weight, stepped.dequantize(), x, goal)),
        stepped.group_size,
        0.5,
    )
    # float32 moments of 240 tokens against float64 tokens
    factors = (both.scale / stepped.scale).double()
    torch.testing.assert_close(factors, expected.expand(factors.shape), rtol=0, atol=3e-5)
    assert (stepped.scale / inner.quantize(given).scale - 1).abs().max() > 0.005
    # the error after Q2N is not the one after the output scales; alpha stays Q2N's
    assert {"kept_rank", "output_error_before", "scales_ridge"} <= both.record.keys()
    assert "output_error" in stepped.record and "output_error" not in both.record
    assert both.record["alpha_mean"] == stepped.record["alpha_mean"]
    assert both.record["scales_mean"] == pytest.approx(float(expected.mean()), abs=3e-5)


def test_q2n_and_output_scales_together_by_settings():
    given, x, x_full = problem()
    settings = {"bits": 3, "nullspace": True, "output_scales": True, "correct": True}
    method = build_method(read_settings(settings))
    layer = method.quantize(given)
    goal = x_full.double() @ given.weight.double().T
    losses = [
        float(((goal - x.double() @ quantized.dequantize().double().T) ** 2).sum())
        for quantized in (layer, method.inner.quantize(given))
    ]
    assert losses[0] < losses[1]
    assert {"correction", "kept_rank", "scales_ridge"} <= layer.record.keys()
