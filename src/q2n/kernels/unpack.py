"""The bitstream of packing.py read on a CPU: one pass, a window of 64 bits over the words.

`unpack` takes a pass over the words for every field of a period, 32 of them at 3 bits. That is
right on a GPU and 4 times slower than this on a CPU, where unpacking is most of a packed layer's
time when one token goes through it. 32 codes fill `bits` whole words, so that tiles of a multiple
of 32 codes begin with a word and are read in parallel.
"""

from typing import no_type_check

import numba
import numpy as np

_TILE = 8192
_WORD = 32


@numba.njit(parallel=True, cache=True, nogil=True)
@no_type_check
def unpack_stream(words, bits, codes):
    """Fill `codes` (uint8) from `words` (uint32)."""
    mask = np.uint64((1 << bits) - 1)
    for tile in numba.prange((codes.size + _TILE - 1) // _TILE):
        low = tile * _TILE
        word = low * bits // _WORD
        window, held = np.uint64(0), 0
        for i in range(low, min(low + _TILE, codes.size)):
            if held < bits:
                window |= np.uint64(words[word]) << np.uint64(held)
                word += 1
                held += _WORD
            codes[i] = window & mask
            window >>= np.uint64(bits)
            held -= bits
