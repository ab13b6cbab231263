"""EXL3: better than rounding at equal bits, feedback, scales, padding, refusals."""

import pytest
import torch

from q2n.errors import InputError, NumericalError
from q2n.grids import exl3 as frames
from q2n.kernels import dispatch
from q2n.layers.exl3 import EXL3Linear
from q2n.linalg import exl3_code
from q2n.linalg.factor import feedback
from q2n.linalg.required_statistics import RequiredStatistics
from q2n.linalg.statistics import InputStatistics
from q2n.method import LayerProblem
from q2n.methods.exl3 import EXL3, LARGEST
from q2n.methods.rtn import RTN


def problem(shape=(128, 128), weight=None, seed=0):
    """Correlated inputs whose sizes range over a factor of 10."""
    rows, columns = shape
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(columns, columns, generator=generator) * torch.logspace(0, -1, columns)
    statistics = InputStatistics(columns, RequiredStatistics.GRAM)
    statistics.update(torch.randn(3 * columns, columns, generator=generator) @ mix)
    if weight is None:
        weight = torch.randn(rows, columns, generator=generator)
    return LayerProblem(name="h.0.up", weight=weight, statistics=statistics, seed=seed)


def output_error(given, layer):
    """Relative, over the calibration text."""
    gram, error = given.measured.gram, layer.dequantize() - given.weight
    energy = float(((given.weight @ gram) * given.weight).sum())
    return float(((error @ gram) * error).sum()) / energy


@pytest.fixture(scope="module")
def given():
    return problem()


@pytest.fixture(scope="module")
def quantized(given):
    return EXL3(bits=2).quantize(given)


def test_it_stores_exl3_layers(given, quantized):
    assert isinstance(quantized, EXL3Linear) and quantized.shape == given.weight.shape
    assert (quantized.bits, quantized.codebook) == (2, "mul1")
    assert EXL3(bits=2).storage.kind == quantized.kind
    assert quantized.record["damping"] == 0.025


def test_the_output_is_nearer_than_by_rounding_with_more_bits(given, quantized):
    found = output_error(given, quantized)
    assert quantized.bits_per_weight == 2.25  # 16 bits per input and output
    assert found < 0.15 * output_error(given, RTN(bits=2).quantize(given))
    assert found < output_error(given, RTN(bits=3).quantize(given))


def test_feedback_lowers_the_error_of_the_output(given, quantized):
    frame = frames.fit(
        given.weight, given.measured.gram.diagonal(), 2, "mul1", seed=0, name="h.0.up"
    )
    codes = EXL3(bits=2).rounded(frame.inside(given.weight), torch.zeros(128, 128))
    plain = EXL3Linear(
        codes=codes.T.contiguous(), suh=frame.suh, svh=frame.svh, bits=2, codebook="mul1"
    )
    weight_error = (plain.dequantize() - given.weight).square().mean()
    assert weight_error < 0.08 * given.weight.square().mean()  # the code's own: 0.069
    assert output_error(given, quantized) < 0.7 * output_error(given, plain)


def test_each_block_is_rounded_from_its_updated_weights():
    """By the definition of the feedback: H' = L D L^T, D block-diagonal, L with blocks of 1."""
    generator = torch.Generator().manual_seed(0)
    x, target = torch.randn(90, 48, generator=generator), torch.randn(48, 32, generator=generator)
    gram = (x @ torch.randn(48, 48, generator=generator)).T.cov()
    lower = torch.linalg.cholesky(gram)
    back = feedback(gram, 0.0, order=torch.arange(48).flip(0))
    codes = EXL3(bits=4).rounded(target, back.matrix)
    error = target - exl3_code.decoded(codes, 4, "mul1")
    for a, b in ((32, 48), (16, 32), (0, 16)):
        carried = lower[b:, a:b] @ torch.linalg.inv(lower[a:b, a:b])
        tiles = exl3_code.to_tiles(target[a:b] + carried.T @ error[b:])[0]
        found = dispatch.nearest_exl3_codes(tiles, exl3_code.values("mul1"), 4)
        assert torch.equal(exl3_code.from_tiles(found[None]), codes[a:b])


def test_the_compensated_weight_is_what_was_rounded(given, quantized):
    """All of its tiles, rounded at once, have the codes of the layer."""
    weight = EXL3(bits=2).compensated(given, quantized.dequantize())
    frame = frames.Frame(quantized.suh, quantized.svh)
    tiles = exl3_code.to_tiles(frame.inside(weight)).flatten(0, 1)
    found = dispatch.nearest_exl3_codes(tiles, exl3_code.values("mul1"), 2)
    assert torch.equal(found, exl3_code.to_tiles(quantized.codes.T).flatten(0, 1))
    assert (weight - given.weight).abs().max() > 0.1


@pytest.mark.parametrize("shape", [(96, 128), (128, 100)])
def test_other_sizes_are_filled_up(shape):
    given = problem(shape)
    layer = EXL3(bits=3).quantize(given)
    assert layer.shape == shape and layer.codes.shape == (128, 128)
    assert output_error(given, layer) < 0.02


def test_rows_of_zeros_stay_zero():
    weight = torch.randn(128, 128, generator=torch.Generator().manual_seed(1))
    weight[5] = 0
    layer = EXL3(bits=2).quantize(problem(weight=weight))
    assert not layer.dequantize()[5].any() and layer.dequantize()[6].any()
    assert not EXL3(bits=2).quantize(problem(weight=torch.zeros(128, 128))).dequantize().any()


def test_sizes_of_rows_and_columns_go_into_the_scales():
    generator = torch.Generator().manual_seed(2)
    weight, energy = torch.randn(128, 128, generator=generator), torch.ones(128)
    weight *= torch.logspace(-1, 1, 128)[:, None]
    svh = frames.fit(weight, energy, 2, "mul1", seed=0, name="a").svh
    size = weight.square().mean(1).sqrt()
    torch.testing.assert_close(svh.abs().float(), size / size.mean(), rtol=1e-3, atol=0)
    energy[0] = 1e9  # one input has nearly all
    svh = frames.fit(weight, energy, 2, "mul1", seed=0, name="a").svh
    assert (svh.abs() == 1).all()


@pytest.mark.parametrize("codebook", ["mul1", "mcg", "3inst"])
def test_tiles_get_the_size_that_suits_the_code(codebook):
    weight = 1e-2 * torch.randn(256, 128, generator=torch.Generator().manual_seed(3))
    target = frames.fit(weight, torch.ones(128), 2, codebook, seed=0, name="a").inside(weight)
    wanted = frames.SHARE[2] * exl3_code.values(codebook).square().mean().sqrt()
    torch.testing.assert_close(target.square().mean().sqrt(), wanted, rtol=1e-2, atol=0)


def test_the_signs_come_from_the_seed():
    weight, energy = torch.ones(128, 128), torch.ones(128)
    first, again, other = (
        frames.fit(weight, energy, 2, "mul1", seed=seed, name="a") for seed in (1, 1, 2)
    )
    assert torch.equal(first.svh, again.svh) and not torch.equal(first.svh, other.svh)
    assert not torch.equal(first.svh.sign(), first.suh.sign())


def test_a_scale_that_float16_cannot_hold_is_refused():
    with pytest.raises(NumericalError, match=r"a\.b: .*inputs.*float16"):
        frames.fit(1e6 * torch.ones(128, 128), torch.ones(128), 2, "mul1", seed=0, name="a.b")


def test_large_layers_are_refused_before_any_work():
    EXL3().check("a", (1024, 1024))
    with pytest.raises(InputError, match=rf"^b: 1152 x 1024 .*{LARGEST}.*GPU has not been run"):
        EXL3().check("b", (1030, 1024))


@pytest.mark.parametrize("bits", [0, 9])
def test_other_widths_are_refused(bits):
    with pytest.raises(InputError, match="bits"):
        EXL3(bits=bits)
