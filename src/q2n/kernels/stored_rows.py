"""Codes of some rows of a matrix out of its bitstream, in plain torch.

The stream runs over all entries: a row may begin within a word, and then the bits before it are
cut off code by code.
"""

from math import gcd

from jaxtyping import Int32, UInt8
from torch import Tensor

from q2n.kernels.unpack import unpack_reference

_WORD = 32


def codes_of_rows(
    words: Int32[Tensor, " words"], bits: int, first: int, last: int, columns: int
) -> UInt8[Tensor, "rows columns"]:
    """Codes of rows first .. last - 1, each of `columns` codes of `bits` bits (1..8)."""
    return stored_codes(words, bits, first * columns, last * columns).view(last - first, columns)


def stored_codes(
    words: Int32[Tensor, " words"], bits: int, first: int, last: int
) -> UInt8[Tensor, " count"]:
    """Codes first .. last - 1 of a stream."""
    period = _WORD // gcd(_WORD, bits)  # codes after which one begins with a word again
    start = first // period * period
    found = unpack_reference(words[start * bits // _WORD :], bits, last - start)
    return found[first - start :]
