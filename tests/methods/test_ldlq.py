import dataclasses

import numpy as np
import oracles
import pytest
import torch
from oracles import quip as oracle

from q2n.errors import InputError
from q2n.linalg import lloyd_max
from q2n.linalg.required_statistics import RequiredStatistics
from q2n.linalg.statistics import InputStatistics
from q2n.method import LayerProblem
from q2n.methods.ldlq import LDLQ
from q2n.methods.rtn import RTN

ROWS, COLUMNS, DAMPING = 9, 40, 0.02


def problem(seed=0, weight=None, decay=1.0, **options):
    """Correlated inputs over `decay` orders of magnitude, in float64 so that both ways of
    computing round alike."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(COLUMNS, COLUMNS, generator=generator, dtype=torch.float64)
    x = torch.randn(150, COLUMNS, generator=generator, dtype=torch.float64)
    statistics = InputStatistics(COLUMNS, RequiredStatistics.GRAM, dtype=torch.float64)
    statistics.update((x * torch.logspace(0, -decay, COLUMNS)) @ mix)
    if weight is None:
        weight = torch.randn(ROWS, COLUMNS, generator=generator, dtype=torch.float64)
    return LayerProblem(name="h.0.up", weight=weight, statistics=statistics, **options)


def damped(given):
    gram = given.statistics.gram.numpy()
    return gram + DAMPING * np.diag(gram).mean() * np.eye(len(gram))


def loss(given, layer):
    error = given.weight.numpy() - layer.dequantize().double().numpy()
    return np.trace(error @ damped(given) @ error.T)


@pytest.mark.parametrize("clamp_first", [False, True])
@pytest.mark.parametrize("order", ["natural", "sorted"])
@pytest.mark.parametrize("bits", [2, 3])
def test_ldlq_and_coordinate_descent_are_their_definition(bits, order, clamp_first):
    given, hessian = problem(), damped(problem())
    options = {"bits": bits, "order": order, "clamp_first": clamp_first}
    options |= {"damping": DAMPING, "clip_sigma": 2.4}
    plain = LDLQ(descent_passes=0, **options).quantize(given)
    assert float(plain.scale) == pytest.approx(oracle.centred_scale(given.weight.numpy(), 2.4))
    ascending = np.argsort(np.diag(hessian)) if order == "sorted" else np.arange(COLUMNS)
    hessian = hessian[np.ix_(ascending, ascending)]
    codes, v = oracle.ldlq_centred(
        given.weight.numpy()[:, ascending], hessian, bits, float(plain.scale),
        clamp_first=clamp_first,
    )  # fmt: skip
    np.testing.assert_array_equal(plain.codes.numpy()[:, ascending], codes)
    passed = oracle.coordinate_descent_pass(v, codes, hessian, 2**bits - 1)
    descended = LDLQ(descent_passes=1, **options).quantize(given)
    np.testing.assert_array_equal(descended.codes.numpy()[:, ascending], passed)
    assert descended.record["descent_changes"] == (passed != codes).sum() > 0


@pytest.mark.parametrize("bits", [2, 4])
def test_uneven_levels_are_rounded_to_the_nearest(bits):
    given = problem()
    layer = LDLQ(bits=bits, grid="lloyd-max", damping=DAMPING, descent_passes=0).quantize(given)
    rms = given.weight.square().mean().sqrt()
    assert float(layer.scale) == pytest.approx(float(rms) * lloyd_max.outermost(bits))
    levels = layer.levels.double().numpy() * float(layer.scale)
    codes = oracle.ldlq_levels(given.weight.numpy(), damped(given), levels)
    np.testing.assert_array_equal(layer.codes, codes)


def test_ldlq_is_gptq_in_reverse_column_order():
    given = problem()
    layer = LDLQ(bits=3, grid="minmax", damping=DAMPING, descent_passes=0).quantize(given)
    expected, _, _ = oracles.gptq(
        given.weight.numpy()[:, ::-1],
        given.statistics.gram.numpy()[::-1, ::-1],
        bits=3,
        group_size=-1,
        symmetric=False,
        act_order=False,
        static_groups=True,
        damping=DAMPING,
    )
    # `dequantize` is float32: a few eps of the largest weight
    np.testing.assert_allclose(layer.dequantize(), expected[:, ::-1], rtol=0, atol=4e-6)


@pytest.mark.parametrize("grid", ["uniform", "lloyd-max", "minmax"])
def test_coordinate_descent_never_raises_the_loss_and_ends(grid):
    given = problem(decay=2.0)
    layers = [
        LDLQ(bits=2, grid=grid, damping=DAMPING, descent_passes=n).quantize(given)
        for n in (0, 1, 2, 3, 200, 201)
    ]
    losses = [loss(given, layer) for layer in layers]
    # dequantized in float32: eps of the loss
    assert all(b <= a * (1 + 1e-6) for a, b in zip(losses, losses[1:], strict=False))
    assert losses[1] < 0.99 * losses[0]
    assert torch.equal(layers[-1].codes, layers[-2].codes)


def test_coordinate_descent_lowers_the_loss_of_a_trellis():
    """Not necessarily each of them: the state at a segment's border is found anew."""
    weight = torch.randn(170, COLUMNS, generator=torch.Generator().manual_seed(1)).double()
    given = problem(weight=weight, decay=2.0)
    losses = [
        loss(given, LDLQ(bits=3, grid="trellis", damping=DAMPING, descent_passes=n).quantize(given))
        for n in (0, 1, 4)
    ]
    assert losses[2] < 0.99 * losses[1] < 0.98 * losses[0]


def test_unbiased_rounding_has_no_mean_error():
    """Over 300 seeds, in units of the standard error: 360 of them stay below 4.5 but for one
    time in 400. Rounding to nearest has the same error every time."""
    weight = torch.rand(ROWS, COLUMNS, generator=torch.Generator().manual_seed(1)).double() - 0.5
    method = LDLQ(bits=8, damping=DAMPING, descent_passes=0, unbiased=True)
    given = problem(weight=weight)
    errors = torch.stack(
        [
            method.quantize(dataclasses.replace(given, seed=seed)).dequantize() - weight
            for seed in range(300)
        ]
    )
    assert (errors.mean(0).abs() / (errors.std(0) / 300**0.5)).max() < 4.5
    assert errors.std(0).min() > 0
    nearest = LDLQ(bits=8, damping=DAMPING, descent_passes=0).quantize(given).dequantize() - weight
    assert nearest.abs().mean() > 10 * errors.mean(0).abs().mean()
    first, again = (method.quantize(given).codes for _ in range(2))
    assert torch.equal(first, again)


def test_clamping_beforehand_hides_what_was_cut_off():
    given = problem()
    cut, fed_back = (
        LDLQ(bits=4, damping=DAMPING, clamp_first=first).quantize(given) for first in (True, False)
    )
    assert loss(given, fed_back) < 0.8 * loss(given, cut)


def test_dead_columns_do_not_disturb_the_others():
    given = problem()
    dead, live = [0, 5, 39], [i for i in range(COLUMNS) if i not in (0, 5, 39)]
    given.weight[:, dead] /= 2  # so that the others make the grid, as when they are alone
    x = torch.randn(90, COLUMNS, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x[:, dead] = 0
    whole, part = (
        InputStatistics(n, RequiredStatistics.GRAM, dtype=torch.float64) for n in (COLUMNS, 37)
    )
    whole.update(x)
    part.update(x[:, live])
    method = LDLQ(bits=3, grid="minmax")
    layer = method.quantize(dataclasses.replace(given, statistics=whole))
    alone = method.quantize(
        LayerProblem(name="part", weight=given.weight[:, live], statistics=part)
    )
    assert torch.equal(layer.codes[:, live], alone.codes)
    assert torch.equal(layer.codes[:, dead], RTN(bits=3).quantize(given).codes[:, dead])


def test_trellis_refuses_layers_with_too_few_rows():
    method = LDLQ(bits=2, grid="trellis")
    method.check("h.0.up", (6, 40))
    with pytest.raises(InputError, match=r"h\.0\.up: a trellis code of 2 bits needs 6 rows"):
        method.check("h.0.up", (5, 40))
    LDLQ(bits=2, grid="lloyd-max").check("h.0.up", (4, 40))


def test_at_8_bits_a_trellis_is_its_levels():
    method = LDLQ(bits=8, grid="trellis")
    method.check("h.0.up", (1, 40))
    layer = method.quantize(problem())
    assert layer.kind == method.storage.kind == "lloyd-max"
    assert LDLQ(bits=4, grid="trellis").storage.kind == "trellis"


def test_options_that_cannot_be():
    for options, match in (
        ({"bits": 5}, "bits is 5; it takes one of 2, 3, 4, 8"),
        ({"damping": -1.0}, "damping is -1.0; .* at least 0"),
        ({"descent_passes": -1}, "descent_passes is -1; .* at least 0"),
        ({"unbiased": True}, "--descent-passes 0"),
        ({"clip_sigma": 0.0}, "clip_sigma is 0.0; it takes a finite number above 0"),
        ({"clip_sigma": 2.4, "grid": "minmax"}, "clip_sigma belongs to --grid uniform"),
        ({"clip_sigma": 2.4, "grid": "lloyd-max"}, "clip_sigma belongs to --grid uniform"),
        ({"unbiased": True, "descent_passes": 0, "grid": "lloyd-max"}, "needs even levels"),
        ({"unbiased": True, "descent_passes": 0, "grid": "trellis"}, "needs even levels"),
        ({"clamp_first": True, "grid": "trellis"}, "clamp_first belongs to --grid uniform"),
    ):
        with pytest.raises(InputError, match=match):
            LDLQ(**options)
