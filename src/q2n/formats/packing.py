"""Unsigned b-bit integers as a dense little-endian bitstream in int32 words, and back.

Element i of a row stands at bits [i b, i b + b) of the row's stream, so a field may begin
in one word and end in the next (b = 3). The pattern repeats every 32 / gcd(32, b)
elements: that period is what the code walks over, for all rows and periods at once.

    b = 1: 32 elements, 1 word
    b = 2: 16 elements, 1 word     b = 3: 32 elements, 3 words
    b = 4:  8 elements, 1 word     b = 8:  4 elements, 1 word

A row that does not fill its last word is padded with zero bits. compressed-tensors and
GPTQ store exactly this stream, along different axes; the native format stores one stream over
all entries of a tensor.
"""

from math import gcd, prod

import torch
from jaxtyping import Int32, UInt8
from torch import Tensor
from torch.nn.functional import pad

WORD = 32


def pack(codes: UInt8[Tensor, "*rows count"], bits: int) -> Int32[Tensor, "*rows words"]:
    """Pack along the last axis; words = ceil(count * bits / 32). Codes lie below 2^bits, bits
    in 1..8; the input is not changed."""
    fields, words = _period(bits)
    count = codes.shape[-1]
    periods = -(-count // fields)
    source = pad(codes, (0, periods * fields - count)).unflatten(-1, (periods, fields))
    packed = torch.zeros(
        (*codes.shape[:-1], periods, words), dtype=torch.int32, device=codes.device
    )
    for field in range(fields):
        word, shift = divmod(field * bits, WORD)
        value = source[..., field].to(torch.int32)
        packed[..., word] |= value << shift
        if shift + bits > WORD:
            packed[..., word + 1] |= value >> (WORD - shift)
    return packed.flatten(-2)[..., : word_count(count, bits)].contiguous()


def unpack(
    words: Int32[Tensor, "*rows words"], bits: int, count: int
) -> UInt8[Tensor, "*rows count"]:
    """Exact inverse of `pack` for rows of `count` elements."""
    from q2n.kernels import dispatch  # numba is loaded when codes are unpacked, not before

    return dispatch.unpack(words, bits, count)


def pack_all(codes: UInt8[Tensor, "..."], bits: int) -> Int32[Tensor, " words"]:
    """One stream over all entries in row-major order.

    Raises:
        ValueError: a code takes more bits.
    """
    if codes.numel() and int(codes.max()) >= 2**bits:
        raise ValueError(f"a code of {int(codes.max())} does not fit into {bits} bits")
    return pack(codes.reshape(-1), bits)


def unpack_all(
    words: Int32[Tensor, " words"], bits: int, shape: tuple[int, ...]
) -> UInt8[Tensor, "..."]:
    """Exact inverse of `pack_all`: what every call of a packed layer begins with."""
    return unpack(words, bits, prod(shape)).reshape(shape)


def word_count(count: int, bits: int) -> int:
    """Words that hold `count` fields of `bits` bits."""
    return -(-count * bits // WORD)


def _period(bits: int) -> tuple[int, int]:
    """(elements, words) after which fields stand at the same place in a word again."""
    common = gcd(WORD, bits)
    return WORD // common, bits // common
