"""Layers in ggml's blocks: factors, counted bits, descriptions that cannot be."""

from dataclasses import replace

import pytest
import torch
from formats.test_ggml_blocks import TYPES, layer

from q2n.block_types import BLOCK_TYPES
from q2n.layers.blocks import BlockLinear
from q2n.linalg.groups import by_column


@TYPES
def test_factors_go_into_d_and_m(kind):
    example = layer(kind)
    alpha = torch.tensor([0.5, 2.0, -4.0])  # powers of 2, which float16 holds
    dense = example.dequantize()
    assert torch.equal(example.scale_rows(alpha).dequantize(), dense * alpha[:, None])
    groups = torch.tensor([[1.0, 2.0], [4.0, 0.5], [-1.0, 1.0]])
    expected = dense * by_column(groups, kind.super_block, dense.shape[1])
    assert torch.equal(example.scale_groups(groups).dequantize(), expected)
    assert example.scale_rows(alpha).stored_bits == example.stored_bits


@TYPES
def test_its_tensors_rebuild_it(kind):
    example = layer(kind)
    again = BlockLinear.from_tensors(example.tensors(), example.metadata())
    assert torch.equal(again.dequantize(), example.dequantize())


@TYPES
def test_it_counts_the_bits_of_the_file(kind):
    assert layer(kind).bits_per_weight == kind.bits_per_weight


@TYPES
def test_only_its_own_shape_fits(kind):
    example = layer(kind)
    sizes = {"out": 3, "in": 2 * kind.super_block, "supers": 2}
    if example.s is not None:
        sizes["blocks"] = example.s.shape[1]
    metadata = {"scale_bits": None, **example.metadata()}
    tensors = set(example.tensors())
    assert BlockLinear.fits(sizes, metadata, tensors)
    assert not BlockLinear.fits({**sizes, "in": sizes["in"] + 1}, metadata, tensors)
    assert not BlockLinear.fits({**sizes, "supers": 1}, metadata, tensors)
    assert not BlockLinear.fits(sizes, {**metadata, "bits": 1}, tensors)
    assert not BlockLinear.fits(sizes, metadata, tensors - {"d"})
    assert not BlockLinear.fits(sizes, metadata, tensors ^ {"m"})


@pytest.mark.parametrize("name", ["q4_0", "q4_1", "q2_k", "iq4_xs"])
def test_d_and_m_are_trained_each_for_itself(name):
    """The dense weight is linear in them: a difference is the gradient."""
    example = layer(BLOCK_TYPES[name])
    trainable = example.trainable(rounding=True)
    assert trainable.code_change is None
    weight = trainable.weight(torch.float32)
    torch.testing.assert_close(weight, example.dequantize(), rtol=1e-6, atol=1e-5)
    probe = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    (weight * probe).sum().backward()
    for i, part in enumerate(["d"] if example.m is None else ["d", "m"]):
        number = getattr(example, part)
        more = number.clone()
        more[1, 0] *= 2
        difference = (replace(example, **{part: more}).dequantize() - example.dequantize()) * probe
        expected = difference.sum()
        torch.testing.assert_close(
            trainable.scale_change.grad[1, 0, i], expected, rtol=1e-4, atol=1e-3
        )


@TYPES
def test_trained_changes_are_stored(kind):
    example = layer(kind)
    trainable = example.trainable(rounding=False)
    with torch.no_grad():
        trainable.scale_change.fill_(1.0)
    assert torch.equal(trainable.quantized().dequantize(), 2 * example.dequantize())


@TYPES
def test_a_weight_in_bfloat16_is_rounded_once(kind):
    trainable = layer(kind).trainable(rounding=False)
    with torch.no_grad():
        trainable.scale_change.fill_(0.001)
    expected = trainable.weight(torch.float32).bfloat16()
    assert torch.equal(trainable.weight(torch.bfloat16), expected)
