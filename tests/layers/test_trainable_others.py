"""Gradient steps on every representation, against its own `dequantize` of the tuned layer.

Every dense weight is linear in the changes, so a central difference is its exact gradient."""

import pytest
import torch
from formats.tiny_models import random_layer

from q2n.errors import InputError
from q2n.layers.centred import CentredLinear
from q2n.layers.codebook import CodebookLinear
from q2n.layers.levels import LloydMaxLinear, TrellisLinear
from q2n.layers.outliers import OutlierLinear
from q2n.layers.partly_binary import PartlyBinaryLinear
from q2n.layers.quantized import QuantizedLinear, Trainable
from q2n.layers.rotated import RotatedLinear

ROWS, COLUMNS = 6, 10
ALPHA = torch.linspace(0.8, 1.2, ROWS)


def random(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(4)) + 0.5


def whole(top, *shape):
    return (random(*shape) * top).to(torch.uint8).clamp(max=top)


def partly_binary(low_bits=1, group_size=COLUMNS, mean=True):
    low = random(ROWS, COLUMNS) < 1.2
    groups = -(-COLUMNS // group_size)
    count = int(low.sum())
    return PartlyBinaryLinear(
        low=low,
        low_codes=whole(2**low_bits - 1, count) if low_bits else None,
        high_codes=whole(255, low.numel() - count),
        mean=random(ROWS, groups) - 1 if mean and low_bits else None,
        magnitude=random(ROWS, groups) if low_bits else None,
        scale=random(ROWS, 1) / 100,
        zero=whole(255, ROWS, 1),
        low_bits=low_bits,
        high_bits=8,
        group_size=group_size,
    )


def codebook():
    return CodebookLinear(codes=whole(3, ROWS, COLUMNS), codebook=random(ROWS, 4) - 1, bits=2)


def outliers():
    """Two columns in 16 bits beside a grid with two groups."""
    grid = random_layer((ROWS, COLUMNS), 3, 8, False, torch.float32)
    return OutlierLinear.of(grid, torch.tensor([7, 2]), random(ROWS, 2) - 1)


def wide_centred():
    return CentredLinear(codes=whole(255, ROWS, COLUMNS), scale=random(ROWS), bits=8)


def rotated(inner: QuantizedLinear, **options):
    return RotatedLinear(inner=inner, seed=11, **{"projection": "kronecker", **options})


LAYERS = {
    "centred": lambda: CentredLinear(codes=whole(3, ROWS, COLUMNS), scale=random(1), bits=2),
    "centred rows, 8 bits": wide_centred,
    "lloyd-max": lambda: LloydMaxLinear(codes=whole(7, ROWS, COLUMNS), scale=random(1), bits=3),
    "lloyd-max rows": lambda: rotated(
        LloydMaxLinear(codes=whole(15, ROWS, COLUMNS), scale=random(ROWS), bits=4), rescale=None
    ),
    "trellis": lambda: TrellisLinear(codes=whole(3, ROWS, COLUMNS), scale=random(1), bits=2),
    "trellis rows": lambda: rotated(
        TrellisLinear(codes=whole(7, ROWS, COLUMNS), scale=random(ROWS), bits=3), rescale=None
    ),
    "rotated": lambda: rotated(wide_centred(), rescale=random(COLUMNS).bfloat16()),
    "rotated, output scales": lambda: rotated(
        random_layer((ROWS, COLUMNS), 3, -1, False, torch.float32),
        rescale=None,
        output_scale=ALPHA,
    ),
    "codebook": codebook,
    "rotated codebook": lambda: rotated(codebook(), rescale=random(COLUMNS).bfloat16()),
    "outliers": outliers,
    "rotated outliers": lambda: rotated(outliers(), output_scale=ALPHA),
    "binary": partly_binary,
    "binary, ragged groups": lambda: partly_binary(group_size=4),
    "binary, no mean": lambda: partly_binary(mean=False),
    "two bits below": lambda: partly_binary(low_bits=2),
    "zeros below": lambda: partly_binary(low_bits=0),
    "rotated binary": lambda: rotated(partly_binary(group_size=4), output_scale=ALPHA),
    "rotated zeros below": lambda: rotated(partly_binary(low_bits=0)),
}
EVERY = pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)


def codes_key(layer):
    return "codes" if "codes" in layer.tensors() else "inner_codes"


def set_to(parameter, values):
    with torch.no_grad():
        parameter.copy_(values)


@EVERY
def test_the_start_is_the_layer_itself(make):
    layer = make().with_record(kept_rank=4)
    form = layer.trainable(rounding=False)
    assert isinstance(form, Trainable) and form.code_change is None
    torch.testing.assert_close(form.weight(torch.float32), layer.dequantize())
    assert form.weight(torch.bfloat16).dtype == torch.bfloat16
    again = form.quantized()
    assert all(torch.equal(again.tensors()[k], t) for k, t in layer.tensors().items())
    assert again.metadata() == layer.metadata() and again.record == {"kept_rank": 4}


@EVERY
def test_the_tuned_layer_has_the_tuned_weights(make):
    layer = make()
    form = layer.trainable(rounding=False)
    set_to(form.scale_change, 0.2 * (random(*form.scale_change.shape) - 1))
    tuned = form.quantized()
    torch.testing.assert_close(form.weight(torch.float32), tuned.dequantize())
    assert not torch.allclose(tuned.dequantize(), layer.dequantize())
    assert not any(tensor.requires_grad for tensor in tuned.tensors().values())
    assert tuned.stored_bits == layer.stored_bits


@EVERY
def test_every_scale_gets_the_finite_difference(make):
    layer = make()
    form = layer.trainable(rounding=False)
    above = random(ROWS, COLUMNS) - 1
    (form.weight(torch.float32) * above).sum().backward()
    slopes = torch.empty_like(form.scale_change)
    for place in torch.cartesian_prod(*map(torch.arange, slopes.shape)).view(-1, slopes.ndim):
        values = []
        for side in (0.5, -0.5):
            change = torch.zeros_like(slopes)
            change[tuple(place)] = side
            set_to(form.scale_change, change)
            values.append((form.quantized().dequantize().double() * above).sum())
        slopes[tuple(place)] = values[0] - values[1]
    torch.testing.assert_close(form.scale_change.grad, slopes, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["centred", "centred rows, 8 bits", "rotated"])
def test_codes_get_the_gradient_straight_through(name):
    """Against differences of layers whose code was moved by one."""
    layer = LAYERS[name]()
    form = layer.trainable(rounding=True)
    above = random(ROWS, COLUMNS) - 1
    (form.weight(torch.float32) * above).sum().backward()
    for row, column in ((0, 0), (2, 7), (5, 9)):
        key = codes_key(layer)
        values = []
        for code in (0, 1):
            tensors = {k: t.clone() for k, t in layer.tensors().items()}
            tensors[key][row, column] = code
            moved = type(layer).from_tensors(tensors, layer.metadata())
            values.append((moved.dequantize() * above).sum())
        torch.testing.assert_close(
            form.code_change.grad[row, column], values[1] - values[0], rtol=1e-3, atol=1e-4
        )


@pytest.mark.parametrize("name", ["centred", "centred rows, 8 bits", "rotated"])
def test_a_code_moves_past_half_a_step(name):
    layer = LAYERS[name]()
    key, top = codes_key(layer), 3 if name == "centred" else 255
    for shift, moved in ((0.49, 0), (0.51, 1), (-0.51, -1), (9.0, 1)):
        form = layer.trainable(rounding=True)
        set_to(form.code_change, torch.full_like(form.code_change, shift))
        expected = (layer.tensors()[key].int() + moved).clamp(0, top)
        tuned = form.quantized()
        assert torch.equal(tuned.tensors()[key].int(), expected)
        torch.testing.assert_close(form.weight(torch.float32), tuned.dequantize())


def test_centred_bfloat16_scales_are_rounded_once():
    scale = torch.tensor([0.75], dtype=torch.bfloat16)
    layer = CentredLinear(codes=whole(3, ROWS, COLUMNS), scale=scale, bits=2)
    form = layer.trainable(rounding=False)
    set_to(form.scale_change, torch.tensor([0.1]))
    assert torch.equal(form.quantized().scale, torch.tensor([0.75 * 1.1]).bfloat16())


def test_output_scales_are_trained_in_place_of_what_lies_within():
    layer = rotated(codebook(), output_scale=ALPHA.half())
    form = layer.trainable(rounding=True)  # a codebook has no codes that move
    assert form.scale_change.shape == (ROWS,)
    set_to(form.scale_change, torch.linspace(-0.1, 0.1, ROWS))
    tuned = form.quantized()
    expected = (ALPHA.half().float() * (1 + form.scale_change)).half()
    assert torch.equal(tuned.output_scale, expected) and tuned.output_scale.dtype == torch.float16
    assert torch.equal(tuned.inner.dequantize(), layer.inner.dequantize())


def test_codes_that_move_are_trained_with_the_scales_within():
    layer = rotated(wide_centred(), output_scale=ALPHA)
    form = layer.trainable(rounding=True)
    assert form.code_change is not None and form.scale_change.shape == (ROWS,)
    set_to(form.scale_change, torch.full((ROWS,), 0.1))
    tuned = form.quantized()
    assert torch.equal(tuned.output_scale, ALPHA)
    torch.testing.assert_close(tuned.dequantize(), 1.1 * layer.dequantize(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["uniform", "rotated"])
def test_a_small_change_of_a_scale_reaches_a_weight_in_bfloat16(kind):
    """By less than the spacing of bfloat16, so that few entries of a row change, but some do."""
    grid = random_layer((ROWS, 200), 8, -1, False, torch.float32)
    layer = grid if kind == "uniform" else rotated(grid, output_scale=torch.ones(ROWS))
    form = layer.trainable(rounding=False)
    before = form.weight(torch.bfloat16).detach().double().abs().sum(1)
    for change in (0.001, -0.001):
        set_to(form.scale_change, torch.full_like(form.scale_change, change))
        after = form.weight(torch.bfloat16).detach().double().abs().sum(1)
        torch.testing.assert_close(
            after / before - 1, torch.full_like(after, change), rtol=1, atol=0
        )


def test_a_mean_or_entry_of_0_can_move():
    binary = partly_binary()
    binary.mean.zero_()
    book = CodebookLinear(codes=whole(1, ROWS, COLUMNS), codebook=torch.eye(2).repeat(3, 1), bits=1)
    for layer, key in ((binary, "mean"), (book, "codebook")):
        form = layer.trainable(rounding=False)
        set_to(form.scale_change, torch.full_like(form.scale_change, 0.01))
        assert (form.quantized().tensors()[key] > 0).all()


def test_rows_are_exchanged_where_they_are_stored_apart():
    layers = [random_layer((ROWS, COLUMNS), 3, -1, False, torch.float32, seed) for seed in (0, 1)]
    taken = torch.arange(ROWS) % 2 == 0
    both = layers[0].with_rows(taken, layers[1]).dequantize()
    expected = torch.where(taken[:, None], layers[1].dequantize(), layers[0].dequantize())
    assert torch.equal(both, expected)
    for layer in (rotated(layers[0]), LAYERS["centred"]()):
        with pytest.raises(InputError, match="rows of .* layers are stored together"):
            layer.with_rows(taken, layer)
