"""Feedback between rows beside YAQA's recursion, and what it does to its loss."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from oracles import two_sided as oracle

from q2n.errors import InputError, NumericalError
from q2n.kernels import row_segments
from q2n.linalg.statistics import InputStatistics
from q2n.method import LayerProblem
from q2n.methods.gptq import GPTQ
from q2n.methods.ldlq import LDLQ
from q2n.wrappers.incoherence import Incoherence

ROWS, COLUMNS = 96, 40
DAMPING = 0.01


def correlated(size, generator):
    """Second moments of correlated channels."""
    mix = torch.randn(size, size, generator=generator, dtype=torch.float64)
    x = torch.randn(4 * size, size, generator=generator, dtype=torch.float64)
    x = (x * torch.logspace(0, -1.5, size)) @ mix
    return x.T @ x / len(x), x


def problem(rows=ROWS, columns=COLUMNS, dtype=torch.float64):
    """In float64, so that both ways of computing round alike."""
    generator = torch.Generator().manual_seed(0)
    statistics = InputStatistics(columns, dtype=dtype)
    statistics.update(correlated(columns, generator)[1].to(dtype))
    weight = torch.randn(rows, columns, generator=generator, dtype=torch.float64).to(dtype)
    gradients = correlated(rows, generator)[0].to(dtype)
    return LayerProblem(name="h.0.up", weight=weight, statistics=statistics, gradients=gradients)


def damped(matrix, share):
    matrix = matrix.numpy()
    return matrix + share * np.diag(matrix).mean() * np.eye(len(matrix))


def loss(given, layer, share=DAMPING):
    """tr(F E H E^T)."""
    error = given.weight.numpy() - layer.dequantize().double().numpy()
    inputs = damped(given.measured.gram, DAMPING)
    return np.trace(damped(given.gradients, share) @ error @ inputs @ error.T)


@pytest.mark.parametrize("name", ["gptq", "ldlq"])
def test_segments_of_one_row_are_yaqa(monkeypatch, name):
    monkeypatch.setattr(row_segments, "LONGEST", 1)
    given = problem(rows=12)
    options = {"bits": 3, "damping": DAMPING, "output_feedback": True, "output_damping": DAMPING}
    if name == "gptq":
        layer = GPTQ(act_order=False, **options).quantize(given)
        order = np.arange(COLUMNS)
    else:
        layer = LDLQ(grid="minmax", descent_passes=0, **options).quantize(given)
        order = np.arange(COLUMNS)[::-1]
    scale, zero = layer.scale.double().numpy()[:, 0], layer.zero.double().numpy()[:, 0]

    def nearest(row, value):
        return scale[row] * (np.clip(np.round(value / scale[row]) + zero[row], 0, 7) - zero[row])

    inputs = damped(given.measured.gram, DAMPING)[np.ix_(order, order)]
    expected = oracle.rounded(
        given.weight.numpy()[:, order], inputs, damped(given.gradients, DAMPING), nearest
    )
    np.testing.assert_allclose(layer.dequantize().numpy()[:, order], expected, rtol=1e-6)


METHODS = {
    "gptq": GPTQ(bits=3),
    "gptq, groups and ranges": GPTQ(bits=3, group_size=10, range_trials=True, descent_passes=1),
    "ldlq": LDLQ(bits=3),
    "lloyd-max": LDLQ(bits=3, grid="lloyd-max"),
    "blocks": GPTQ(grid="q4_0", range_trials=True),
    "random basis": Incoherence(inner=LDLQ(bits=3)),
}


def with_feedback(method):
    if isinstance(method, Incoherence):
        return replace(method, inner=with_feedback(method.inner))
    return replace(method, output_feedback=True, output_damping=DAMPING)


@pytest.mark.parametrize("name", METHODS)
def test_the_loss_falls(monkeypatch, name):
    monkeypatch.setattr(row_segments, "LONGEST", 8)
    dtype = torch.float32 if name == "lloyd-max" else torch.float64
    method, given = METHODS[name], problem(columns=32 if name == "blocks" else COLUMNS, dtype=dtype)
    before, after = (loss(given, x.quantize(given)) for x in (method, with_feedback(method)))
    assert after < 0.8 * before


def test_the_trellis_keeps_its_segments():
    """Of more rows than one segment has: what follows the first makes up for it."""
    given = problem(rows=200, dtype=torch.float32)
    method = LDLQ(bits=3, grid="trellis")
    plain, layer = (x.quantize(given) for x in (method, with_feedback(method)))
    assert torch.equal(layer.codes[:100], plain.codes[:100])
    assert loss(given, layer) < 0.9 * loss(given, plain)
    assert layer.record["descent_changes"] > 0


@pytest.mark.parametrize("name", ["gptq", "gptq, groups and ranges", "ldlq", "lloyd-max"])
def test_outputs_that_count_alike_change_nothing(name):
    method, given = METHODS[name], problem()
    given = replace(given, gradients=torch.eye(ROWS, dtype=torch.float64))
    plain, layer = (x.quantize(given) for x in (method, with_feedback(method)))
    assert torch.equal(plain.codes, layer.codes)
    assert torch.equal(plain.dequantize(), layer.dequantize())


def test_no_gradient_is_the_same_as_none():
    """Of a layer, an expert say, whose output no prediction has read."""
    given = problem()
    plain = METHODS["gptq"].quantize(given)
    given = replace(given, gradients=torch.zeros_like(given.gradients))
    assert torch.equal(plain.codes, with_feedback(METHODS["gptq"]).quantize(given).codes)


def test_gradients_that_are_not_finite_are_refused():
    given = problem()
    given.gradients[0, 1] = torch.nan
    with pytest.raises(NumericalError, match=r"h\.0\.up: the gradients .* --output-feedback false"):
        with_feedback(METHODS["gptq"]).quantize(given)


@pytest.mark.parametrize("name", ["gptq", "ldlq"])
def test_a_damping_that_was_raised_is_on_record(name):
    """A matrix that is no sum of squares: the smallest damping is not enough."""
    given = problem()
    values, vectors = torch.linalg.eigh(given.gradients)
    values[0] = -0.05 * values.mean()
    given = replace(given, gradients=vectors @ values.diag() @ vectors.T)
    record = with_feedback(METHODS[name]).quantize(given).record
    assert record["output_damping"] == pytest.approx(0.1) and record["damping"] == 0.01


def test_a_matrix_that_no_damping_mends_is_named():
    given = problem()
    given = replace(given, gradients=given.gradients - 9 * given.gradients.diagonal().mean())
    with pytest.raises(NumericalError, match=r"gradients at its output .* --output-damping above"):
        with_feedback(METHODS["gptq"]).quantize(given)


@pytest.mark.parametrize("method", [GPTQ, LDLQ])
def test_a_damping_of_nothing_is_refused(method):
    with pytest.raises(InputError, match="--output-feedback true"):
        method(output_damping=1.0)


def test_the_card_says_it():
    assert "feedback between rows" in with_feedback(METHODS["gptq"]).title
    assert "feedback between rows" not in METHODS["gptq"].title


def test_the_compensated_weight_is_the_one_that_was_rounded(monkeypatch):
    """Column by column: its nearest codes are those of the layer."""
    monkeypatch.setattr(row_segments, "LONGEST", 8)
    given = problem()
    method = with_feedback(GPTQ(bits=3, block_size=1))
    layer = method.quantize(given)
    weight = method.compensated(given, layer.dequantize())
    codes = (weight / layer.scale + layer.zero).round().clamp(0, 7)
    assert torch.equal(codes, layer.codes.to(codes))
    plain = GPTQ(bits=3, block_size=1).compensated(given, layer.dequantize())
    assert (plain - weight).abs().max() > 0.1


def test_groups_that_are_fitted_on_the_way_are_refused():
    with pytest.raises(InputError, match="--static-groups"):
        GPTQ(group_size=8, act_order=False, static_groups=False, output_feedback=True)


def test_trials_go_without():
    assert not with_feedback(METHODS["gptq"]).trial.reads_gradients
    assert not with_feedback(METHODS["random basis"]).trial.reads_gradients
    assert with_feedback(METHODS["random basis"]).reads_gradients
