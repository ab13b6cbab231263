"""Layers of EXL3: their dense weight, factors, counted bits, descriptions that cannot be."""

import pytest
import torch
from oracles import exl3 as oracle

from q2n.layers.exl3 import EXL3Linear
from q2n.linalg import exl3_code

SHAPES = pytest.mark.parametrize("shape", [(128, 256), (100, 130)])


def layer(shape=(128, 128), bits=3, codebook="mul1"):
    generator = torch.Generator().manual_seed(0)
    rows, columns = (-(-size // 128) * 128 for size in shape)
    codes = torch.randint(0, 2**bits, (rows, columns), generator=generator).to(torch.uint8)
    suh, svh = (torch.randn(size, generator=generator).half() for size in shape[::-1])
    return EXL3Linear(codes=codes, suh=suh, svh=svh, bits=bits, codebook=codebook)


@SHAPES
def test_the_weight_is_the_rotated_tiles_between_the_scales(shape):
    example = layer(shape)
    inner = exl3_code.decoded(example.codes.T, 3, "mul1").numpy()
    middle = oracle.hadamard(oracle.hadamard(inner).T)[: shape[0], : shape[1]]
    expected = example.svh.double()[:, None] * torch.from_numpy(middle) * example.suh.double()
    assert example.shape == shape
    # sums of 2 x 128 numbers near 1 in float32
    torch.testing.assert_close(example.dequantize().double(), expected, rtol=0, atol=1e-5)


def test_factors_go_into_svh():
    example = layer()
    alpha = 2.0 ** torch.arange(-4, 4).repeat(16)  # powers of 2, which float16 holds
    scaled = example.scale_rows(alpha)
    assert torch.equal(scaled.dequantize(), example.dequantize() * alpha[:, None])
    assert scaled.codes is example.codes and scaled.svh.dtype == torch.float16
    assert scaled.stored_bits == example.stored_bits


@SHAPES
def test_its_tensors_rebuild_it(shape):
    example = layer(shape)
    again = EXL3Linear.from_tensors(example.tensors(), example.metadata())
    assert torch.equal(again.dequantize(), example.dequantize())


def test_padding_counts():
    assert layer((128, 256)).stored_bits == 3 * 128 * 256 + 16 * (128 + 256)
    assert layer((100, 130)).stored_bits == 3 * 128 * 256 + 16 * (100 + 130)


def test_only_whole_blocks_fit():
    sizes = {"out": 100, "in": 130, "padded_out": 128, "padded_in": 256}
    assert EXL3Linear.fits(sizes, {}, set())
    assert not EXL3Linear.fits({**sizes, "padded_out": 256}, {}, set())
    assert not EXL3Linear.fits({**sizes, "in": 120}, {}, set())


def test_svh_is_trained():
    """The dense weight is linear in it: a difference is the gradient."""
    example = layer((100, 130))
    trainable = example.trainable(rounding=True)
    assert trainable.code_change is None
    weight = trainable.weight(torch.float32)
    torch.testing.assert_close(weight, example.dequantize())
    probe = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    (weight * probe).sum().backward()
    torch.testing.assert_close(
        trainable.scale_change.grad, (example.dequantize() * probe).sum(1), rtol=1e-4, atol=1e-4
    )
    with torch.no_grad():
        trainable.scale_change.fill_(1.0)
    assert torch.equal(trainable.quantized().dequantize(), 2 * example.dequantize())


def test_a_weight_in_bfloat16_is_rounded_once():
    trainable = layer().trainable(rounding=False)
    with torch.no_grad():
        trainable.scale_change.fill_(0.001)  # less than the spacing of bfloat16
    expected = trainable.weight(torch.float32).bfloat16()
    assert torch.equal(trainable.weight(torch.bfloat16), expected)
