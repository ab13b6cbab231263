import numpy as np
import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from hypothesis import given
from hypothesis import strategies as st

from q2n.formats.packing import pack, pack_all, unpack, unpack_all, word_count


def bitstream(row: list[int], bits: int) -> list[int]:
    """The definition: one large integer, cut into signed 32-bit words."""
    number = sum(code << (i * bits) for i, code in enumerate(row))
    words = [(number >> (32 * w)) & 0xFFFFFFFF for w in range(-(-len(row) * bits // 32))]
    return [w - 2**32 if w >= 2**31 else w for w in words]


def random_codes(rows: int, count: int, bits: int, seed: int = 0) -> torch.Tensor:
    generator = np.random.default_rng(seed)
    return torch.from_numpy(generator.integers(0, 2**bits, (rows, count), dtype=np.uint8))


widths = st.sampled_from([1, 2, 3, 4, 5, 6, 7, 8])


@given(widths, st.integers(1, 4), st.integers(1, 131), st.integers(0, 9))
def test_unpack_inverts_pack(bits: int, rows: int, count: int, seed: int) -> None:
    codes = random_codes(rows, count, bits, seed)
    before = codes.clone()
    words = pack(codes, bits)
    assert words.shape == (rows, word_count(count, bits))
    assert torch.equal(unpack(words, bits, count), codes)
    assert torch.equal(codes, before)


@given(widths, st.integers(1, 131), st.integers(0, 9))
def test_pack_is_the_little_endian_bitstream(bits: int, count: int, seed: int) -> None:
    codes = random_codes(1, count, bits, seed)
    assert pack(codes, bits)[0].tolist() == bitstream(codes[0].tolist(), bits)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("count", [32, 45, 96])
def test_pack_equals_compressed_tensors(bits: int, count: int) -> None:
    codes = random_codes(7, count, bits)
    signed = (codes.int() - 2 ** (bits - 1)).to(torch.int8)
    assert torch.equal(pack(codes, bits), pack_to_int32(signed, bits))


def test_leading_axes_and_views() -> None:
    codes = random_codes(6, 40, 3).reshape(2, 3, 40)
    assert torch.equal(pack(codes, 3)[1, 2], pack(codes[1, 2], 3))
    turned = random_codes(40, 6, 3).T  # not contiguous
    assert torch.equal(pack(turned, 3), pack(turned.contiguous(), 3))


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("shape", [(), (0,), (1,), (5, 7), (3, 1), (31, 2, 9), (3, 8192)])
def test_one_stream_over_all_entries(bits: int, shape: tuple[int, ...]) -> None:
    codes = random_codes(1, int(np.prod(shape)), bits).reshape(shape)
    words = pack_all(codes, bits)
    assert words.tolist() == bitstream(codes.flatten().tolist(), bits)
    assert torch.equal(unpack_all(words, bits, shape), codes)  # a CPU's own kernel
    assert torch.equal(unpack(words, bits, codes.numel()).reshape(shape), codes)
