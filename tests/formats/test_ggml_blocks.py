"""ggml's blocks: bytes as gguf-py reads them, and back."""

import gguf
import numpy as np
import pytest
import torch

from q2n.block_types import BLOCK_TYPES
from q2n.errors import InputError
from q2n.formats.ggml_blocks import pack, unpack
from q2n.layers.blocks import BlockLinear

TYPES = pytest.mark.parametrize("kind", BLOCK_TYPES.values(), ids=BLOCK_TYPES)


def layer(kind, rows=3, supers=2, seed=0):
    """Every number at random, over its whole range."""
    generator = torch.Generator().manual_seed(seed)
    columns = supers * kind.super_block

    def whole(bits, *shape):
        return torch.randint(2**bits, shape, generator=generator).to(torch.uint8)

    def half():
        return torch.randn((rows, supers), generator=generator).half()

    blocks, scales = columns // kind.block, kind.scale_bits
    return BlockLinear(
        codes=whole(kind.bits, rows, columns),
        d=half(),
        m=half() if kind.has_minimum else None,
        s=whole(scales, rows, blocks) if scales else None,
        t=whole(scales, rows, blocks) if scales and kind.has_minimum else None,
        block_type=kind.name.lower(),
        bits=kind.bits,
        scale_bits=scales,
    )


def read_by_gguf(data, kind):
    """gguf-py's dequantizer; it lacks Q2_0, two lines of llama.cpp's `dequantize_row_q2_0`."""
    if kind.name == "Q2_0":
        blocks = data.reshape(len(data), -1, 18)
        d = blocks[:, :, :2].copy().view(np.float16).astype(np.float32)
        codes = [
            [(block[2 + j // 4] >> j % 4 * 2 & 3) - 1.0 for j in range(64)]
            for row in blocks
            for block in row
        ]
        return (d * np.array(codes, np.float32).reshape(*d.shape[:2], 64)).reshape(len(data), -1)
    return gguf.quants.dequantize(data, gguf.GGMLQuantizationType[kind.name])


@TYPES
def test_gguf_reads_the_weights_bit_for_bit(kind):
    example = layer(kind)
    read = read_by_gguf(pack(example).numpy(), kind)
    assert np.array_equal(read, example.dequantize().numpy())


@TYPES
def test_bytes_give_the_layer_back(kind):
    example = layer(kind, rows=4, supers=3, seed=1)
    again = unpack(pack(example), kind)
    assert again.metadata() == example.metadata()
    tensors = example.tensors()
    assert again.tensors().keys() == tensors.keys()
    assert all(torch.equal(x, tensors[name]) for name, x in again.tensors().items())


@TYPES
def test_a_row_has_the_bytes_that_llama_cpp_counts(kind):
    example = layer(kind)
    assert pack(example).shape == (3, 2 * kind.bytes)
    assert example.stored_bits == 8 * 6 * kind.bytes
    if kind.name != "Q2_0":
        sizes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind.name]]
        assert sizes == (kind.super_block, kind.bytes)
        assert gguf.GGMLQuantizationType[kind.name] == kind.number


def test_rows_that_are_no_whole_super_blocks_are_refused():
    with pytest.raises(InputError, match="not whole super-blocks of Q4_0"):
        unpack(torch.zeros(1, 19, dtype=torch.uint8), BLOCK_TYPES["q4_0"])
