import dataclasses

import oracles
import pytest
import torch
from witness import witness

from q2n.errors import InputError, NumericalError
from q2n.linalg.basis import Basis
from q2n.linalg.held_out import correction_ridge
from q2n.linalg.required_statistics import RequiredStatistics
from q2n.linalg.statistics import InputStatistics
from q2n.method import LayerProblem
from q2n.methods.gptq import GPTQ
from q2n.methods.rtn import RTN
from q2n.wrappers.correction import InputErrorCorrection
from q2n.wrappers.incoherence import Incoherence
from q2n.wrappers.nullspace import NullSpace
from q2n.wrappers.output_scales import OutputScales

ROWS, COLUMNS, TOKENS = 12, 32, 240


def problem(seed=0, noise=0.3, tokens=TOKENS, **options):
    """A layer with both inputs: the prefix adds an error correlated with the full input."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.logspace(0, -1, COLUMNS)
    mix = torch.linalg.qr(torch.randn(COLUMNS, COLUMNS, generator=generator))[0]
    bend = torch.randn(COLUMNS, COLUMNS, generator=generator) / COLUMNS**0.5
    weight = torch.randn(ROWS, COLUMNS, generator=generator)
    x_full = (torch.randn(tokens, COLUMNS, generator=generator) * spread) @ mix
    x = x_full + noise * (x_full @ bend + 0.2 * torch.randn(x_full.shape, generator=generator))
    given = LayerProblem(
        name="h.0.up_proj", weight=weight, statistics=gathered(x, x_full), **options
    )
    return given, x, x_full


HELD_OUT_RIDGES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
HALVES = (slice(0, None, 2), slice(1, None, 2))


def gathered(x, x_full, needs=RequiredStatistics.GRAM | RequiredStatistics.CROSS):
    statistics = InputStatistics(COLUMNS, needs)
    statistics.update(x, x_full)
    return statistics


def cross_loss(given, layer, x, x_full):
    target = x_full.double() @ given.weight.double().T
    return float(((target - x.double() @ layer.dequantize().double().T) ** 2).sum())


def corrected_weight(given, x, x_full, ridge):
    return oracles.minimised_correction(
        given.weight.double(), x.double(), x_full.double(), ridge
    ).float()


@pytest.mark.parametrize("ridge", [0.01, 0.5])
def test_only_the_weight_of_the_problem_changes(ridge):
    given, x, x_full = problem(scale_dtype=torch.bfloat16, seed=3)
    given = dataclasses.replace(given, seed=11)
    original = given.weight.clone()
    inner, problems = witness(bits=3)
    layer = InputErrorCorrection(inner=inner, correction_ridge=ridge).quantize(given)
    (seen,) = problems
    expected = corrected_weight(given, x, x_full, ridge)
    # float32 moments of 240 tokens, and a Gram whose condition is 100 and more
    torch.testing.assert_close(seen.weight, expected, rtol=0, atol=1e-4)
    assert (seen.weight - original).norm() > 0.05 * original.norm()
    assert torch.equal(given.weight, original)
    for name in ("name", "statistics", "scale_dtype", "seed"):
        assert getattr(seen, name) is getattr(given, name)
    moved = (expected - original).norm() / original.norm()
    assert layer.record["correction"] == pytest.approx(float(moved), rel=1e-3)


@pytest.mark.parametrize("in_basis", [False, True], ids=["plain", "in a random basis"])
@pytest.mark.parametrize("share", [0.5, 1.0])
def test_a_writer_makes_up_for_a_share_of_the_stream_s_error(share, in_basis):
    """Weight and scales aim at W x_full + share (s_full - s), in any basis."""
    given, x, x_full = problem()
    generator = torch.Generator().manual_seed(5)
    s_full = torch.randn(TOKENS, ROWS, generator=generator)
    s = s_full + 0.3 * x @ torch.randn(COLUMNS, ROWS, generator=generator)  # x tells of it
    lack = share * (s_full - s)
    needs = RequiredStatistics.GRAM | RequiredStatistics.CROSS
    statistics = InputStatistics(COLUMNS, needs, outputs=ROWS, share=share)
    for part in (slice(0, 100), slice(100, None)):
        statistics.update(x[part], x_full[part], s[part], s_full[part])
    given = dataclasses.replace(given, statistics=statistics)
    inner, problems = witness(bits=3)
    method = OutputScales(inner=InputErrorCorrection(inner=inner), scales_ridge=0.0)
    layer = (Incoherence(inner=method) if in_basis else method).quantize(given)
    (seen,) = problems
    goal = oracles.minimised_correction(
        given.weight.double(), x.double(), x_full.double(), 0.5, lack.double()
    )
    without = corrected_weight(given, x, x_full, 0.5)
    basis = layer.basis if in_basis else Basis()
    torch.testing.assert_close(seen.weight, basis.weight(goal.float()), rtol=0, atol=1e-4)
    assert (goal - without).norm() > 0.05 * without.norm()
    # in the layer's own basis each row's factor is that of least squares
    q = layer.inner.dequantize() if in_basis else layer.dequantize()
    target = x_full @ given.weight.T + lack
    if basis.left is not None:
        target = basis.left.apply(target)
    output = basis.inputs(x) @ q.T
    along = ((target - output) * output).sum(0)
    assert along.abs().max() < 1e-2 * output.square().sum(0).min()


INNER = [RTN(bits=3), RTN(bits=3, group_size=8), GPTQ(bits=3), GPTQ(bits=2, group_size=8)]
NAMES = ["rtn", "rtn-groups", "gptq", "gptq-groups"]


@pytest.mark.parametrize("inner", INNER, ids=NAMES)
def test_it_is_the_method_on_the_corrected_weight(inner):
    given, _, _ = problem()
    probe, problems = witness()
    InputErrorCorrection(inner=probe).quantize(given)
    expected = inner.quantize(dataclasses.replace(given, weight=problems[0].weight))
    layer = InputErrorCorrection(inner=inner).quantize(given)
    assert torch.equal(layer.codes, expected.codes)
    assert torch.equal(layer.scale, expected.scale) and torch.equal(layer.zero, expected.zero)
    assert set(layer.record) == {*expected.record, "correction", "correction_ridge"}
    assert layer.record["correction_ridge"] == 0.5
    assert not torch.equal(layer.codes, inner.quantize(given).codes)


@pytest.mark.parametrize("ridge", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("inner", INNER, ids=NAMES)
@pytest.mark.parametrize("seed", range(2))
def test_it_comes_closer_to_the_full_models_output(seed, inner, ridge):
    """On the tokens it saw, and where there are many on tokens it did not see."""
    given, x, x_full = problem(seed, tokens=2 * 1024)
    seen, unseen = slice(0, 1024), slice(1024, None)
    given = dataclasses.replace(given, statistics=gathered(x[seen], x_full[seen]))
    method = InputErrorCorrection(inner=inner, correction_ridge=ridge)
    alone, layer = inner.quantize(given), method.quantize(given)
    for tokens in (seen, unseen):
        before = cross_loss(given, alone, x[tokens], x_full[tokens])
        assert cross_loss(given, layer, x[tokens], x_full[tokens]) < before


def test_the_held_out_ridge_falls_back_to_float64_or_names_the_layer(monkeypatch):
    folds = RequiredStatistics.GRAM | RequiredStatistics.CROSS | RequiredStatistics.FOLDS
    given, x, x_full = problem()
    x, x_full = (t.unflatten(0, (4, -1)) for t in (x, x_full))
    method = InputErrorCorrection(inner=RTN(bits=3), correction_held_out=True)

    def ridge():
        fresh = dataclasses.replace(given, statistics=gathered(x, x_full, folds))
        return method.quantize(fresh).record["correction_ridge"]

    expected, real = ridge(), torch.linalg.eigh

    def never(matrix):
        raise torch.linalg.LinAlgError("did not converge")

    monkeypatch.setattr(
        torch.linalg, "eigh", lambda g: real(g) if g.dtype == torch.float64 else never(g)
    )
    assert ridge() == expected
    monkeypatch.setattr(torch.linalg, "eigh", never)
    with pytest.raises(NumericalError, match=r"h\.0\.up_proj: eigh .* float64"):
        ridge()


def test_correction_recovers_most_of_the_prefix_error():
    given, x, x_full = problem(noise=0.5)
    exact = dataclasses.replace(given, statistics=gathered(x_full, x_full))
    inner = GPTQ(bits=4)
    floor = cross_loss(given, inner.quantize(exact), x_full, x_full)
    alone = cross_loss(given, inner.quantize(given), x, x_full)
    method = InputErrorCorrection(inner=inner, correction_ridge=1e-3)
    corrected = cross_loss(given, method.quantize(given), x, x_full)
    assert corrected - floor < 0.35 * (alone - floor)


@pytest.mark.parametrize("inner", INNER, ids=NAMES)
def test_large_ridge_or_exact_prefix_changes_nothing(inner):
    given, x, x_full = problem()
    exact = dataclasses.replace(given, statistics=gathered(x, x))
    expected = inner.quantize(given)
    for case, ridge in ((given, 1e12), (exact, 0.5), (exact, 1e-3)):
        layer = InputErrorCorrection(inner=inner, correction_ridge=ridge).quantize(case)
        torch.testing.assert_close(layer.dequantize(), expected.dequantize(), rtol=0, atol=1e-4)
        assert layer.record["correction"] < 1e-4


def test_output_scales_after_correction_target_original_weight():
    given, x, x_full = problem()
    inner = InputErrorCorrection(inner=GPTQ(bits=2, group_size=8))
    before = inner.quantize(given)
    for target, goal in (("full_precision", x_full), ("own", x)):
        after = OutputScales(inner=inner, target=target).quantize(given)
        expected = oracles.least_squares_output_alpha(
            *(t.double() for t in (given.weight, before.dequantize(), x, goal)), 8, 0.5
        )
        found = (after.scale / before.scale).double()
        torch.testing.assert_close(found, expected, rtol=0, atol=3e-5)
        assert torch.equal(after.codes, before.codes)
        assert {"correction", "scales_mean"} <= set(after.record)
    assert cross_loss(given, OutputScales(inner=inner).quantize(given), x, x_full) < cross_loss(
        given, before, x, x_full
    )
    assert "kept_rank" in NullSpace(inner=inner).quantize(given).record


def test_it_does_not_matter_how_tokens_were_merged():
    given, x, x_full = problem()
    a, b = gathered(x[:100], x_full[:100]), gathered(x[100:], x_full[100:])
    weights = []
    for statistics in (given.statistics, a + b, b + a):
        inner, problems = witness()
        InputErrorCorrection(inner=inner).quantize(
            dataclasses.replace(given, statistics=statistics)
        )
        weights.append(problems[0].weight)
    for weight in weights[1:]:
        torch.testing.assert_close(weight, weights[0], rtol=0, atol=2e-5)


@pytest.mark.parametrize(("tokens", "noise"), [(80, 0.1), (240, 0.3)])
def test_held_out_ridge_is_best_on_unseen_windows(tokens, noise):
    given, x, x_full = problem(noise=noise, tokens=tokens)
    x, x_full = (t.unflatten(0, (4, -1)) for t in (x, x_full))
    statistics = gathered(
        x, x_full, RequiredStatistics.GRAM | RequiredStatistics.CROSS | RequiredStatistics.FOLDS
    )
    given = dataclasses.replace(given, statistics=statistics)
    target = (x_full @ given.weight.T).double()
    errors = []
    for ridge in HELD_OUT_RIDGES:
        error = 0.0
        for fitted, unseen in (HALVES, HALVES[::-1]):
            fold = (t[fitted].flatten(0, 1) for t in (x, x_full))
            weight = corrected_weight(given, *fold, ridge).double()
            error += float(((target[unseen] - x[unseen].double() @ weight.T) ** 2).sum())
        errors.append(error)
    best = HELD_OUT_RIDGES[errors.index(min(errors))]
    method = InputErrorCorrection(inner=GPTQ(bits=3), correction_held_out=True)
    assert (
        method.required_statistics
        == RequiredStatistics.GRAM | RequiredStatistics.CROSS | RequiredStatistics.FOLDS
    )
    layer = method.quantize(given)
    assert layer.record["correction_ridge"] == best
    statistics = gathered(x, x_full, method.required_statistics)  # nothing remembered
    given = dataclasses.replace(given, statistics=statistics)
    fixed = InputErrorCorrection(inner=GPTQ(bits=3), correction_ridge=best).quantize(given)
    assert torch.equal(layer.codes, fixed.codes)


def test_the_linears_of_a_site_share_one_factor(monkeypatch):
    given, _, _ = problem()
    real, calls = torch.linalg.cholesky_ex, []
    monkeypatch.setattr(torch.linalg, "cholesky_ex", lambda m: calls.append(1) or real(m))
    for bits in (2, 3):
        InputErrorCorrection(inner=RTN(bits=bits)).quantize(given)
    assert len(calls) == 1
    InputErrorCorrection(inner=RTN(), correction_ridge=0.1).quantize(given)
    assert len(calls) == 2


def test_singular_gram_without_ridge_names_the_layer():
    given, x, x_full = problem()
    x[:] = x[:, :1]  # every input is the same one
    given = dataclasses.replace(given, statistics=gathered(x, x_full))
    with pytest.raises(NumericalError, match=r"h\.0\.up_proj.*correction ridge"):
        InputErrorCorrection(inner=RTN(), correction_ridge=0.0).quantize(given)
    layer = InputErrorCorrection(inner=GPTQ(bits=3)).quantize(given)
    assert torch.isfinite(layer.dequantize()).all()


def test_statistics_it_reads():
    assert (
        InputErrorCorrection(inner=RTN()).required_statistics
        == RequiredStatistics.GRAM | RequiredStatistics.CROSS
    )
    positions = NullSpace(inner=RTN(), gram="mean_activation")
    assert (
        InputErrorCorrection(inner=positions).required_statistics
        == RequiredStatistics.GRAM | RequiredStatistics.CROSS | RequiredStatistics.POSITIONS
    )
    given, x, x_full = problem()
    alone = dataclasses.replace(given, statistics=gathered(x, x_full, RequiredStatistics.GRAM))
    with pytest.raises(InputError, match="CROSS"):
        InputErrorCorrection(inner=RTN()).quantize(alone)


def test_refusals():
    for ridge in (-0.1, float("nan"), float("inf")):
        with pytest.raises(
            InputError, match="^correction_ridge is .*; it takes a finite number at least 0"
        ):
            InputErrorCorrection(inner=RTN(), correction_ridge=ridge)
    InputErrorCorrection(inner=RTN(), correction_ridge=0.0)
    with pytest.raises(InputError, match=r"h\.0\.up.*44 columns"):
        InputErrorCorrection(inner=RTN(group_size=16)).check("h.0.up", (ROWS, 44))
    given, x, x_full = problem()
    given.statistics.update(x, float("inf") * x_full)
    with pytest.raises(NumericalError, match=r"h\.0\.up_proj.*cross moment.*not finite"):
        InputErrorCorrection(inner=RTN()).quantize(given)


def test_a_layer_of_zeros_stays_zero():
    given, _, _ = problem()
    given = dataclasses.replace(given, weight=torch.zeros(ROWS, COLUMNS))
    layer = InputErrorCorrection(inner=RTN(bits=3)).quantize(given)
    assert (layer.dequantize() == 0).all() and layer.record["correction"] == 0


def test_the_held_out_ridge_is_that_of_the_stream_too():
    """Inputs that are wrong at random, and a stream whose lack they tell: the least ridge."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(8, 200, COLUMNS, generator=generator)
    x_full = x + 0.3 * torch.randn(x.shape, generator=generator)
    s = torch.zeros(8, 200, ROWS)
    s_full = x @ torch.randn(COLUMNS, ROWS, generator=generator)
    needs = RequiredStatistics.GRAM | RequiredStatistics.CROSS | RequiredStatistics.FOLDS
    statistics = InputStatistics(COLUMNS, needs, outputs=ROWS, share=0.5)
    statistics.update(x, x_full, s, s_full)
    weight = 0.1 * torch.randn(ROWS, COLUMNS, generator=generator)
    target = x_full @ weight.T + 0.5 * (s_full - s)
    errors = []
    for ridge in HELD_OUT_RIDGES:
        error = 0.0
        for fitted, unseen in (HALVES, HALVES[::-1]):
            part, full = x[fitted].flatten(0, 1).double(), target[fitted].flatten(0, 1).double()
            gram = part.T @ part
            shift = ridge * gram.diagonal().mean() * torch.eye(COLUMNS, dtype=torch.float64)
            right = full.T @ part + weight.double() @ shift
            moved = torch.linalg.solve(gram + shift, right.T).T
            error += float(((target[unseen] - x[unseen] @ moved.float().T) ** 2).sum())
        errors.append(error)
    best = HELD_OUT_RIDGES[errors.index(min(errors))]
    assert best < 1 and correction_ridge(weight, statistics, name="h") == best
