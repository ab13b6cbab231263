"""Uniform layers under gradient steps, against `scale (1 + change) (code - zero)`."""

import pytest
import torch
from formats.tiny_models import random_layer

from q2n.errors import InputError
from q2n.layers.quantized import QuantizedLinear
from q2n.layers.uniform import UniformLinear
from q2n.method import LayerProblem
from q2n.methods.rtn import RTN

SHAPES = pytest.mark.parametrize(
    ("columns", "group_size"), [(24, -1), (24, 8), (20, 8)], ids=["row", "groups", "ragged"]
)


def some_layer(bits=3, columns=20, group_size=8, symmetric=False, dtype=torch.float32):
    return random_layer((6, columns), bits, group_size, symmetric, dtype)


def plain_weight(layer: UniformLinear, change: torch.Tensor) -> torch.Tensor:
    """The formula, in float64, one column after another."""
    scale = layer.scale.double() * (1 + change)
    columns = [
        scale[:, j // layer.group_size]
        * (layer.codes[:, j].double() - layer.zero[:, j // layer.group_size].double())
        for j in range(layer.shape[1])
    ]
    return torch.stack(columns, 1)


def random_change(like: torch.Tensor, size: float, seed: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return size * torch.randn(like.shape, generator=generator)


def set_to(parameter: torch.nn.Parameter, values: torch.Tensor) -> None:
    with torch.no_grad():
        parameter.copy_(values)


@SHAPES
@pytest.mark.parametrize("rounding", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_start_is_the_layer_itself(bits, symmetric, rounding, columns, group_size):
    layer = some_layer(bits, columns, group_size, symmetric)
    form = layer.trainable(rounding=rounding)
    assert torch.equal(form.weight(torch.float32), layer.dequantize())
    again = form.quantized()
    assert all(torch.equal(again.tensors()[k], tensor) for k, tensor in layer.tensors().items())
    assert again.metadata() == layer.metadata()


@pytest.mark.parametrize("rounding", [False, True])
def test_eight_bit_steps_need_two_bytes(rounding):
    layer = UniformLinear(
        codes=torch.tensor([[0, 255], [255, 7]], dtype=torch.uint8),
        scale=torch.ones(2, 1),
        zero=torch.tensor([[255], [0]], dtype=torch.uint8),
        bits=8,
        group_size=2,
        symmetric=False,
    )
    form = layer.trainable(rounding=rounding)
    weight = form.weight(torch.float32)
    assert weight.tolist() == [[-255, 0], [255, 7]]
    weight.sum().backward()
    assert form.scale_change.grad.tolist() == [[-255], [262]]


@pytest.mark.parametrize("rounding", [False, True])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
def test_a_bfloat16_weight_is_the_rounded_layer(stored, rounding):
    layer = some_layer(dtype=stored)
    weight = layer.trainable(rounding=rounding).weight(torch.bfloat16)
    assert weight.dtype == torch.bfloat16
    # the scale and the product are each rounded to 8 bits: 2 * 2^-8
    torch.testing.assert_close(weight.float(), layer.dequantize(), rtol=2**-7, atol=0)


@SHAPES
@pytest.mark.parametrize("rounding", [False, True])
def test_scales_get_the_gradient_of_the_plain_formula(rounding, columns, group_size):
    layer = some_layer(4, columns, group_size)
    form = layer.trainable(rounding=rounding)
    set_to(form.scale_change, random_change(layer.scale, 0.1))
    above = random_change(layer.codes, 1.0, seed=6)
    expected = form.scale_change.detach().double().requires_grad_()
    dense = plain_weight(layer, expected)
    (above * dense + dense**3).sum().backward()
    weight = form.weight(torch.float32)
    torch.testing.assert_close(weight.double(), dense, rtol=1e-6, atol=0)
    (above * weight + weight**3).sum().backward()
    # float32 sums of up to 24 terms that partly cancel
    torch.testing.assert_close(form.scale_change.grad.double(), expected.grad, rtol=1e-5, atol=1e-5)


def test_scales_get_the_finite_difference():
    layer = some_layer()
    form = layer.trainable(rounding=False)
    above = random_change(layer.codes, 1.0, seed=6).double()
    form.weight(torch.float32).backward(above.float())
    for row, group in ((0, 0), (3, 1), (5, 2)):
        values = []
        for side in (1, -1):
            change = torch.zeros_like(layer.scale).double()
            change[row, group] = side * 1e-3
            values.append((above * plain_weight(layer, change)).sum())
        slope = (values[0] - values[1]) / 2e-3  # exact: the weight is linear in the change
        gradient = form.scale_change.grad[row, group].double()
        torch.testing.assert_close(gradient, slope, rtol=1e-5, atol=1e-6)


@SHAPES
def test_codes_get_the_weights_gradient_times_the_scale(columns, group_size):
    """Straight through the rounding, also where a code is at the end of its range."""
    layer = some_layer(2, columns, group_size)
    form = layer.trainable(rounding=True)
    set_to(form.code_change, random_change(layer.codes, 0.6).clamp(-0.99, 0.99))
    set_to(form.scale_change, random_change(layer.scale, 0.1))
    above = random_change(layer.codes, 1.0, seed=6)
    form.weight(torch.float32).backward(above)
    scale = layer.scale * (1 + form.scale_change.detach())
    group = torch.arange(columns) // layer.group_size
    torch.testing.assert_close(form.code_change.grad, above * scale[:, group])


def test_a_code_moves_only_past_half_a_step():
    layer = some_layer(bits=2)
    for shift, moved in ((0.49, 0), (0.51, 1), (-0.49, 0), (-0.51, -1), (1.4, 1), (9.0, 1)):
        form = layer.trainable(rounding=True)
        set_to(form.code_change, torch.full(layer.shape, shift))
        expected = (layer.codes.int() + moved).clamp(0, 3)
        assert torch.equal(form.quantized().codes.int(), expected), shift
        assert form.quantized().codes.dtype == torch.uint8
        dense = form.quantized().dequantize()
        assert torch.equal(form.weight(torch.float32), dense), shift


@pytest.mark.parametrize("rounding", [False, True])
@SHAPES
def test_the_tuned_layer_has_the_tuned_weights(columns, group_size, rounding):
    layer = some_layer(3, columns, group_size).with_record(kept_rank=4)
    form = layer.trainable(rounding=rounding)
    set_to(form.scale_change, random_change(layer.scale, 0.1))
    if rounding:
        set_to(form.code_change, random_change(layer.codes, 0.6))
    tuned = form.quantized()
    assert torch.equal(tuned.dequantize(), form.weight(torch.float32))
    assert torch.equal(tuned.codes, layer.codes) != rounding
    assert torch.equal(tuned.zero, layer.zero) and tuned.record == {"kept_rank": 4}
    assert not any(tensor.requires_grad for tensor in tuned.tensors().values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_tuned_scales_are_the_nearest_in_their_dtype(dtype):
    layer = some_layer(dtype=dtype)
    form = layer.trainable(rounding=False)
    assert form.scale_change.dtype == torch.float32
    set_to(form.scale_change, random_change(layer.scale, 0.1))
    expected = layer.scale.double() * (1 + form.scale_change.detach().double())
    scale = form.quantized().scale
    assert scale.dtype == dtype
    half_a_unit = torch.finfo(dtype).eps / 2
    assert ((scale.double() / expected - 1).abs() <= 1.001 * half_a_unit).all()


def test_codes_take_no_part_unless_asked():
    layer = some_layer()
    assert layer.trainable(rounding=False).code_change is None
    names = [name for name, _ in layer.trainable(rounding=True).named_parameters()]
    assert names == ["scale_change", "code_change"]


def test_the_layer_is_not_changed():
    layer = RTN(bits=3).quantize(
        LayerProblem(name="layer", weight=torch.randn(4, 8), statistics=None)
    )
    before = {name: tensor.clone() for name, tensor in layer.tensors().items()}
    form = layer.trainable(rounding=True)
    set_to(form.scale_change, torch.full_like(layer.scale, 0.5))
    set_to(form.code_change, torch.full(layer.shape, 1.0))
    form.weight(torch.float32).sum().backward()
    form.quantized()
    assert all(torch.equal(tensor, before[name]) for name, tensor in layer.tensors().items())


def test_parameters_lie_where_the_layer_does():
    layer = some_layer().to(torch.device("meta"))
    form = layer.trainable(rounding=True)
    assert form.scale_change.is_meta and form.code_change.is_meta
    assert form.weight(torch.float32).is_meta and form.quantized().codes.is_meta


def test_a_representation_without_such_a_form_says_so():
    class Other(UniformLinear):
        kind = "other"
        trainable = QuantizedLinear.trainable

    layer = some_layer()
    with pytest.raises(InputError, match="other layers"):
        Other(**layer.tensors(), **layer.metadata()).trainable(rounding=False)
