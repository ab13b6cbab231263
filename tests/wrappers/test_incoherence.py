import dataclasses

import numpy as np
import oracles
import pytest
import torch
from oracles import quip as oracle
from witness import witness

from q2n.config.owners import build_method
from q2n.config.reading import read_settings
from q2n.errors import InputError
from q2n.grids import gaussian_range
from q2n.grids.uniform import UniformGrid
from q2n.layers.rotated import RotatedLinear
from q2n.layers.uniform import UniformLinear
from q2n.linalg.required_statistics import RequiredStatistics
from q2n.linalg.statistics import InputStatistics
from q2n.method import LayerProblem, Method
from q2n.methods.gptq import GPTQ
from q2n.methods.ldlq import LDLQ
from q2n.methods.rtn import RTN
from q2n.wrappers.correction import InputErrorCorrection
from q2n.wrappers.incoherence import Incoherence
from q2n.wrappers.nullspace import NullSpace
from q2n.wrappers.output_scales import OutputScales

ROWS, COLUMNS = 12, 24
NEEDS = RequiredStatistics.GRAM | RequiredStatistics.CROSS
DAMPING = 1.01**2 - 1
"""QuIP's two, before and after its rotation, as one."""


def problem(seed=0, dtype=torch.float32, **options):
    """A layer with a few large weights, and inputs with a few large channels, and the tokens of
    both streams."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.linalg.qr(torch.randn(COLUMNS, COLUMNS, generator=generator, dtype=torch.float64))
    x = torch.randn(120, COLUMNS, generator=generator, dtype=torch.float64)
    x = (x * torch.logspace(0, -1.5, COLUMNS)) @ mix[0] * torch.logspace(-0.5, 0.5, COLUMNS)
    full = x + 0.1 * torch.randn(x.shape, generator=generator, dtype=torch.float64)
    weight = torch.randn(ROWS, COLUMNS, generator=generator, dtype=torch.float64)
    weight[3, 5] = 8
    statistics = InputStatistics(COLUMNS, NEEDS, dtype=dtype)
    statistics.update(x, full)
    given = LayerProblem(
        name="h.0.up", weight=weight.to(dtype), statistics=statistics, seed=seed, **options
    )
    return given, x, full


def output_error(given, layer):
    error = (given.weight - layer.dequantize().to(given.weight)).double()
    return float(((error @ given.statistics.gram.double()) * error).sum())


def dense(rotation):
    first, second = (factor.blocks.numpy() for factor in rotation.factors)
    natural = torch.arange(rotation.size)
    orders = (natural if order is None else order for order in (rotation.into, rotation.out))
    return oracle.kronecker(first, second, *(order.numpy() for order in orders))


def quip(*, rescale=False, projection="kronecker", damping=DAMPING, **options):
    """LDLQ in a random basis."""
    inner = LDLQ(damping=damping, **options)
    return Incoherence(inner=inner, incoherence_rescale=rescale, projection=projection)


@pytest.mark.parametrize("projection", ["kronecker", "blocks", "blocks_unpermuted"])
def test_quip_is_its_definition(projection):
    """Rescaling, projection, both dampings as one, LDLQ and a pass of coordinate descent. Weight
    and Gram matrix in float64, so that no weight is rounded the other way."""
    given, _, _ = problem(dtype=torch.float64)
    method = quip(bits=3, rescale=True, projection=projection, damping=1.03 * 1.02 - 1)
    layer = method.quantize(given)
    weight, gram = given.weight.numpy(), given.statistics.gram.numpy()
    s = layer.rescale.double().numpy()
    np.testing.assert_allclose(s, oracle.rescaling(weight, gram), rtol=2**-8)  # bfloat16
    turned, hessian = oracle.preprocessed(
        weight, gram, s, dense(layer.basis.left), dense(layer.basis.right), 0.03, 0.02
    )
    scale = float(layer.inner.scale)
    assert scale == pytest.approx(
        oracle.centred_scale(turned, gaussian_range.BEST_CLIP_SIGMA[3]), rel=1e-6
    )
    codes, v = oracle.ldlq_centred(turned, hessian, 3, scale, clamp_first=False)
    codes = oracle.coordinate_descent_pass(v, codes, hessian, 7)
    np.testing.assert_array_equal(layer.inner.codes, codes)


@pytest.mark.parametrize("bits", [2, 3])
def test_the_preset_quip_is_the_published_one(bits):
    """Both dampings of 0.01, the rescaling, the reach of 2.4, and weights that are clamped to the
    grid's range before anything is rounded."""
    given, _, _ = problem(dtype=torch.float64)
    method = build_method(read_settings({"method": "quip", "bits": bits}))
    layer = method.quantize(given)
    turned, hessian = oracle.preprocessed(
        given.weight.numpy(),
        given.statistics.gram.numpy(),
        layer.rescale.double().numpy(),
        dense(layer.basis.left),
        dense(layer.basis.right),
        0.01,
        0.01,
    )
    scale = float(layer.inner.scale)
    assert scale == pytest.approx(oracle.centred_scale(turned, 2.4), rel=1e-6)
    codes, v = oracle.ldlq_centred(turned, hessian, bits, scale, clamp_first=True)
    codes = oracle.coordinate_descent_pass(v, codes, hessian, 2**bits - 1)
    np.testing.assert_array_equal(layer.inner.codes, codes)
    better = dataclasses.replace(method, inner=dataclasses.replace(method.inner, clamp_first=False))
    assert not torch.equal(better.quantize(given).inner.codes, layer.inner.codes)
    assert output_error(given, better.quantize(given)) < output_error(given, layer)


def test_inner_method_sees_the_layer_in_another_basis():
    given, x, full = problem()
    inner, problems = witness(bits=8)
    layer = Incoherence(inner=inner, incoherence_rescale=True).quantize(given)
    (seen,) = problems
    turned, turned_full = (layer.basis.inputs(t) for t in (x, full))
    expected = InputStatistics(COLUMNS, NEEDS, dtype=torch.float64)
    expected.update(turned, turned_full)
    for found, exact in (
        (seen.statistics.gram, expected.gram),
        (seen.statistics.cross, expected.cross),
    ):
        # sums of 120 products and of two rotations in float32
        error = (found.double() - exact).abs().max() / exact.abs().max()
        assert error < 1e-5
    rotated_error = output_error(seen, layer.inner)
    assert rotated_error == pytest.approx(output_error(given, layer), rel=1e-2)


def test_weight_on_the_grid_without_basis_is_exact():
    given, _, _ = problem()
    grid = UniformGrid(bits=8)
    scale, zero = grid.fit(given.weight, torch.float32, given.name)
    on_grid = UniformLinear(
        codes=grid.encode(given.weight, scale, zero), scale=scale, zero=zero, bits=8,
        group_size=COLUMNS, symmetric=False,
    ).dequantize()  # fmt: skip
    plain = build_method(
        read_settings({"method": "ldlq", "bits": 8, "grid": "minmax", "damping": DAMPING})
    )
    layer = plain.quantize(dataclasses.replace(given, weight=on_grid))
    assert isinstance(layer, UniformLinear)
    torch.testing.assert_close(layer.dequantize(), on_grid, rtol=0, atol=1e-6)
    energy = float(((given.weight @ given.statistics.gram) * given.weight).sum())
    for rescale in (False, True):
        fine = quip(bits=8, rescale=rescale, grid="minmax").quantize(given)
        assert output_error(given, fine) < 1e-5 * energy  # (2^-8)^2 / 12 of the range, shaped


def test_quip_beats_gptq_on_heavy_tails():
    errors = {"quip": 0.0, "gptq": 0.0}
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        mix = torch.linalg.qr(torch.randn(96, 96, generator=generator))[0]
        weight = torch.randn(64, 96, generator=generator)
        statistics = InputStatistics(96)
        x = torch.randn(384, 96, generator=generator) * torch.logspace(0, -1.5, 96)
        statistics.update(x @ mix)
        given = LayerProblem(name="h.0.up", weight=weight * weight.abs(), statistics=statistics)
        errors["quip"] += output_error(given, quip(bits=2).quantize(given))
        errors["gptq"] += output_error(given, GPTQ(bits=2).quantize(given))
    assert errors["quip"] < 0.6 * errors["gptq"]


def test_result_depends_on_the_layer_seed_alone():
    given, _, _ = problem()
    first, again = (quip(bits=2).quantize(given) for _ in range(2))
    assert torch.equal(first.dequantize(), again.dequantize())
    other = quip(bits=2).quantize(dataclasses.replace(given, seed=1))
    assert not torch.equal(first.dequantize(), other.dequantize())


def stepped(method, wrapper, space, **options):
    """With a wrapper within the random basis, or around it."""
    if space == "original":
        return wrapper(inner=method, **options)
    return dataclasses.replace(method, inner=wrapper(inner=method.inner, **options))


def factors(after, before):
    return (after * before).sum(1).double() / (before * before).sum(1).double()


@pytest.mark.parametrize("grid", ["uniform", "minmax"])
@pytest.mark.parametrize("space", ["rotated", "original"])
def test_the_papers_alpha_in_either_space(space, grid):
    given, _, _ = problem()
    method = quip(bits=2, rescale=True, grid=grid)
    before = method.quantize(given)
    after = stepped(method, NullSpace, space).quantize(given)
    assert torch.equal(before.inner.codes, after.inner.codes)
    weight, gram = given.weight.double(), given.statistics.gram.double()
    dequantized = [layer.dequantize() for layer in (before, after)]
    if space == "rotated":
        weight = before.basis.weight(weight)
        half = before.basis.inputs(gram)
        gram = before.basis.inputs(half.T)
        dequantized = [layer.inner.dequantize() for layer in (before, after)]
        assert after.output_scale is None
    else:
        assert torch.equal(after.inner.scale, before.inner.scale)
    values = torch.linalg.eigvalsh(gram).flip(0).clamp(min=0).tolist()
    start = oracles.paper_start(values, 0.1)
    assert after.record["kept_rank"] == start
    expected = oracles.projected_alpha(weight, dequantized[0].double(), gram, start, 0.2)
    # float32 eigenvectors, and a float16 output scale in the original space
    torch.testing.assert_close(
        factors(*dequantized[::-1]), expected, rtol=0, atol=2e-5 if space == "rotated" else 6e-4
    )
    assert (expected - 1).abs().max() > 0.01
    # the record speaks of the layer's own output
    energy = float(((given.weight @ given.statistics.gram) * given.weight).sum())
    assert after.record["output_error"] == pytest.approx(
        output_error(given, after) / energy, rel=2e-3
    )


def test_output_scales_in_the_random_basis():
    given, x, full = problem()
    method = quip(bits=2, rescale=True)
    before = method.quantize(given)
    after = stepped(method, OutputScales, "rotated").quantize(given)
    basis = before.basis
    expected = oracles.least_squares_output_alpha(
        basis.weight(given.weight.double()),
        before.inner.dequantize().double(),
        basis.inputs(x),
        basis.inputs(full),
        COLUMNS,
        0.5,
    )
    found = factors(after.inner.dequantize(), before.inner.dequantize())
    # float32 sums over tokens
    torch.testing.assert_close(found, expected.squeeze(1), rtol=0, atol=1e-4)


def test_correction_is_equal_in_both_spaces_without_rescaling():
    """The ridge is a share of the mean diagonal, which a rotation keeps."""
    given, _, _ = problem(dtype=torch.float64)
    layers = [
        stepped(quip(bits=3), InputErrorCorrection, space).quantize(given)
        for space in ("rotated", "original")
    ]
    assert torch.equal(layers[0].inner.codes, layers[1].inner.codes)
    assert not torch.equal(layers[0].inner.codes, quip(bits=3).quantize(given).inner.codes)


def chain(method: Method) -> list[type]:
    found = []
    while method is not None:
        found.append(type(method))
        method = getattr(method, "inner", None)
    return found


@pytest.mark.parametrize(
    ("around", "order"),
    [
        ("wrappers", [Incoherence, OutputScales, InputErrorCorrection, LDLQ]),
        ("method", [OutputScales, InputErrorCorrection, Incoherence, LDLQ]),
    ],
)
def test_the_settings_say_what_the_basis_goes_around(around, order):
    settings = read_settings(
        {
            "method": "quip",
            "bits": 2,
            "quality": "good",
            "incoherence_around": around,
            "descent_passes": 2,
        }
    )
    method = build_method(settings)
    assert chain(method) == order
    assert build_method(read_settings(settings.flat())) == method
    assert method.required_statistics == NEEDS
    layer = method.quantize(problem()[0])
    assert isinstance(layer, RotatedLinear) and (layer.output_scale is None) == (
        around == "wrappers"
    )
    assert {"correction", "scales_mean", "damping"} <= layer.record.keys()  # all of it was done


def test_what_cannot_be_is_refused():
    assert quip().required_statistics == RequiredStatistics.GRAM
    assert Incoherence(inner=RTN()).required_statistics == RequiredStatistics.GRAM
    with pytest.raises(InputError, match="projection is 'dense'; it takes one of kronecker"):
        Incoherence(inner=RTN(), projection="dense")
    for method in (quip(), *(stepped(quip(), NullSpace, x) for x in ("rotated", "original"))):
        method.check("h.0.up", (576, 4093))  # a prime: dense
        with pytest.raises(InputError, match=r"h\.0\.up: its width 8209 = 8209 x 1 has no useful"):
            method.check("h.0.up", (576, 8209))
    with pytest.raises(InputError, match="not around incoherence"):
        stepped(quip(), NullSpace, "original", reference="compensated")
    with pytest.raises(InputError, match=r"h\.0\.up.*24 columns"):  # the method's own
        Incoherence(inner=RTN(group_size=16)).check("h.0.up", (ROWS, COLUMNS))
