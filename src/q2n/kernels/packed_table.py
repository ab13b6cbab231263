"""Rows of a packed table, for the tokens that ask for them: `scale * (code - zero)`.

Codes and zero points are bitstreams over all entries (formats/packing.py), so that a row may begin
within a word. Each code is moved out of the word in which it begins and the next one. Plain torch
on any device: a row has some hundreds of numbers, and a token asks for one.
"""

import torch
from jaxtyping import Float, Int, Int32, Int64
from torch import Tensor

from q2n.linalg.groups import by_column

_WORD = 32


def rows_of_table(
    rows: Int[Tensor, " tokens"],
    codes: Int32[Tensor, " words"],
    scale: Float[Tensor, "out groups"],
    zero: Int32[Tensor, " zero_words"] | None,
    *,
    bits: int,
    columns: int,
    group_size: int,
) -> Float[Tensor, "tokens {columns}"]:
    """These rows of a uniform grid in float32. Without `zero` all zero points are 2^(bits - 1)."""
    steps = _codes_of_rows(codes, bits, rows, columns).float()
    if zero is None:
        steps -= 2 ** (bits - 1)
    else:
        steps -= by_column(_codes_of_rows(zero, bits, rows, scale.shape[1]), group_size, columns)
    return steps * by_column(scale[rows], group_size, columns).float()


def _codes_of_rows(
    words: Int32[Tensor, " words"], bits: int, rows: Int[Tensor, " n"], columns: int
) -> Int64[Tensor, "n {columns}"]:
    """Codes of `bits` bits (1..8), `columns` to a row."""
    place = torch.arange(columns, device=rows.device)
    start = (rows.long().unsqueeze(1) * columns + place) * bits
    word, shift = start // _WORD, start % _WORD
    first = words[word].long() & (1 << _WORD) - 1
    second = words[(word + 1).clamp(max=len(words) - 1)].long()
    return (first >> shift | second << _WORD - shift) & (1 << bits) - 1
