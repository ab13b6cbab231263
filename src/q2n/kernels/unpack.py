"""Unpacking: integers of b bits out of the words of a bitstream (formats/packing.py packs them).

Element i of a row lies at bits [i b, i b + b) of the row's little-endian stream of 32-bit words, so
a field may begin in one word and end in the next (b = 3). The pattern repeats after a period of
32 / gcd(32, b) elements.

The reference goes over the fields of a period, one pass over all rows and periods for each field,
32 passes at 3 bits. That suits a GPU. On a CPU, where unpacking takes most of the time of a packed
layer with one token, the numba kernel is 4 times faster: one pass, with a window of 64 bits
that moves over the words. 32 codes fill exactly `b` words, so tiles of a multiple of 32 codes begin
with a whole word and are read in parallel.
"""

from math import gcd, prod
from typing import no_type_check

import numba
import numpy as np
import torch
from jaxtyping import Int32, UInt8
from torch import Tensor
from torch.nn.functional import pad

from q2n.kernels.compiled import compiled

_TILE = 8192
_WORD = 32


def unpack_reference(
    words: Int32[Tensor, "*rows words"], bits: int, count: int
) -> UInt8[Tensor, "*rows count"]:
    """The first `count` codes of `bits` bits (1..8) of every row of words. On any device."""
    fields, period_words = _WORD // gcd(_WORD, bits), bits // gcd(_WORD, bits)
    periods = -(-count // fields)
    source = pad(words, (0, periods * period_words - words.shape[-1]))
    source = source.unflatten(-1, (periods, period_words))
    shape = (*words.shape[:-1], periods, fields)
    codes = torch.empty(shape, dtype=torch.uint8, device=words.device)
    mask = (1 << bits) - 1
    for field in range(fields):
        word, shift = divmod(field * bits, _WORD)
        value = source[..., word] >> shift
        if shift + bits > _WORD:
            # The shift copied the sign bit downwards: keep the field's own low part.
            low = _WORD - shift
            value = (value & ((1 << low) - 1)) | (source[..., word + 1] << low)
        codes[..., field] = (value & mask).to(torch.uint8)
    return codes.flatten(-2)[..., :count].contiguous()


def unpack_numba(
    words: Int32[Tensor, "*rows words"], bits: int, count: int
) -> UInt8[Tensor, "*rows count"]:
    """The same on a CPU, tiles of all rows in parallel."""
    codes = torch.empty((*words.shape[:-1], count), dtype=torch.uint8)
    rows = prod(words.shape[:-1])
    streams = words.contiguous().view(rows, words.shape[-1]).numpy().view(np.uint32)
    _kernel(streams, bits, codes.view(rows, count).numpy())
    return codes


@compiled(parallel=True)
@no_type_check
def _kernel(words, bits, codes):
    rows, count = codes.shape
    tiles = (count + _TILE - 1) // _TILE
    mask = np.uint64((1 << bits) - 1)
    for part in numba.prange(rows * tiles):
        row, low = part // tiles, part % tiles * _TILE
        word = low * bits // _WORD
        window, held = np.uint64(0), 0
        for i in range(low, min(low + _TILE, count)):
            if held < bits:
                window |= np.uint64(words[row, word]) << np.uint64(held)
                word += 1
                held += _WORD
            codes[row, i] = window & mask
            window >>= np.uint64(bits)
            held -= bits
