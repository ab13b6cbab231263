"""Packed rows of two grids and a mask (layers/partly_binary.py).

Codes of low and of high weights lie in two streams, in the order of the mask. Where those of a row
begin is counted once per layer.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import no_type_check

import numpy as np
import torch
from jaxtyping import Float, Int, Int32, UInt8
from torch import Tensor

from q2n.kernels.bit_stream import unpack_row
from q2n.kernels.compiled import compiled, compiled_callback
from q2n.kernels.memory import bytes_at, floats_at, integers_at, working_memory
from q2n.kernels.packed_rows import (
    LENGTH,
    PackedRows,
    finish_row,
    take_piece,
    token_memory,
    tokens_of,
)
from q2n.kernels.stored_rows import codes_of_rows, stored_codes
from q2n.linalg.groups import by_column


@dataclass(frozen=True, eq=False)
class PartlyBinaryRows(PackedRows):
    """Mask, two streams of codes, and what the codes stand for; factors in float32."""

    shape: tuple[int, int]
    low: Int32[Tensor, " words"]
    low_codes: Int32[Tensor, " low_words"] | None
    low_bits: int
    high_codes: Int32[Tensor, " high_words"]
    high_bits: int
    starts: Int[Tensor, " rows_and_one"]
    """Number of low weights before each row, int64."""
    magnitude: Float[Tensor, "out groups"] | None
    """None: low weights are 0."""
    mean: Float[Tensor, "out groups"] | None
    scale: Float[Tensor, " out"]
    zero: UInt8[Tensor, " out"]
    group_size: int

    def dense(self, first: int, last: int) -> Float[Tensor, "rows in"]:
        """As `PackedRows.dense`."""
        columns = self.shape[1]
        low = codes_of_rows(self.low, 1, first, last, columns).bool()
        start, end = int(self.starts[first]), int(self.starts[last])
        codes = torch.empty(low.shape, device=low.device)
        high = (first * columns - start, last * columns - end)
        codes[~low] = stored_codes(self.high_codes, self.high_bits, *high).float()
        zero, scale = self.zero[first:last, None].float(), self.scale[first:last, None]
        large = (codes - zero) * scale
        if self.low_codes is None or self.magnitude is None:
            return large.masked_fill(low, 0)
        codes[low] = stored_codes(self.low_codes, self.low_bits, start, end).float()
        position = codes * (2 / (2**self.low_bits - 1)) - 1  # -1 .. 1
        small = by_column(self.magnitude[first:last], self.group_size, columns) * position
        if self.mean is not None:
            small += by_column(self.mean[first:last], self.group_size, columns)
        return torch.where(low, small, large)

    @property
    def callback(self) -> Callable[[], int]:
        """As `PackedRows.callback`."""
        return _partly_binary

    def own_integers(self) -> list[int]:
        """As `PackedRows.own_integers`."""

        def address(tensor: Tensor | None) -> int:
            return 0 if tensor is None else tensor.data_ptr()

        low, high = self.low_codes, self.high_codes
        return [
            *(self.low.data_ptr(), self.low.nbytes),
            *(address(low), 0 if low is None else low.nbytes, self.low_bits),
            *(address(high), high.nbytes, self.high_bits),
            *(address(self.starts), address(self.magnitude), address(self.mean)),
            *(address(self.scale), address(self.zero), self.group_size),
        ]


@compiled_callback
@no_type_check
def _partly_binary(frame):
    job = integers_at(frame, LENGTH)
    columns = job[2]
    memory = working_memory(3 * columns + 32 + token_memory(frame))
    mask = memory.ctypes.data
    small = mask + (columns + 15) // 8 * 8
    large = small + (columns + 15) // 8 * 8
    weight = large + (columns + 15) // 8 * 8
    x = tokens_of(frame, weight + (columns + 1) // 2 * 8)
    bytes_at(small, columns)[:] = 0
    while True:
        first, last = take_piece(frame)
        if first == last:
            break
        for row in range(first, last):
            _unpack(frame, row, mask, small, large)
            _merge(frame, row, mask, small, large, weight)
            finish_row(frame, row, weight, x)
    memory[0] = 0  # it is needed until here


@compiled()
@no_type_check
def _unpack(frame, row, mask, small, large):
    job = integers_at(frame, LENGTH)
    columns, starts = job[2], integers_at(job[24], row + 2)
    unpack_row(job[16], job[17], row * columns, 1, columns, mask)
    low = starts[row + 1] - starts[row]
    if job[18] != 0:
        unpack_row(job[18], job[19], starts[row], job[20], low, small)
    unpack_row(job[21], job[22], row * columns - starts[row], job[23], columns - low, large)


@compiled()
@no_type_check
def _merge(frame, row, mask, small, large, target):
    job = integers_at(frame, LENGTH)
    columns, size = job[2], job[29]
    groups = (columns + size - 1) // size
    is_low, low, high = bytes_at(mask, columns), bytes_at(small, columns), bytes_at(large, columns)
    scale, zero = floats_at(job[27], row + 1)[row], np.float32(bytes_at(job[28], row + 1)[row])
    step = np.float32(2 / ((1 << job[20]) - 1)) if job[20] > 0 else np.float32(0)
    weight, lows, highs = floats_at(target, columns), 0, 0
    for g in range(groups):
        place = 4 * (row * groups + g)
        magnitude = floats_at(job[25] + place, 1)[0] if job[25] != 0 else np.float32(0)
        mean = floats_at(job[26] + place, 1)[0] if job[26] != 0 else np.float32(0)
        for j in range(g * size, min(columns, (g + 1) * size)):
            if is_low[j] != 0:
                weight[j] = magnitude * (np.float32(low[lows]) * step - np.float32(1)) + mean
                lows += 1
            else:
                weight[j] = (np.float32(high[highs]) - zero) * scale
                highs += 1
