"""Packed rows whose codes point into a table of 2^b values: the row's own codebook, or levels that
all rows share times a scale per row (even ones, Lloyd-Max levels).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import no_type_check

import numpy as np
from jaxtyping import Float, Int32
from torch import Tensor

from q2n.kernels.bit_stream import unpack_row
from q2n.kernels.compiled import compiled, compiled_callback
from q2n.kernels.memory import U, bytes_at, floats_at, integers_at, working_memory
from q2n.kernels.packed_rows import (
    LENGTH,
    PackedRows,
    finish_row,
    take_piece,
    token_memory,
    tokens_of,
)
from q2n.kernels.stored_rows import codes_of_rows


@dataclass(frozen=True, eq=False)
class LevelRows(PackedRows):
    """Codes of `bits` bits; tables and scales are in float32 and contiguous."""

    shape: tuple[int, int]
    bits: int
    codes: Int32[Tensor, " words"]
    levels: Float[Tensor, "tables entries"]
    """2^bits entries for each row, or for all."""
    scale: Float[Tensor, " out"] | None
    """Factor of each row; None for 1."""

    def dense(self, first: int, last: int) -> Float[Tensor, "rows in"]:
        """As `PackedRows.dense`."""
        codes = codes_of_rows(self.codes, self.bits, first, last, self.shape[1])
        tables = self.levels.expand(self.shape[0], -1)[first:last]
        values = tables.gather(1, codes.long())
        return values if self.scale is None else values * self.scale[first:last, None]

    @property
    def callback(self) -> Callable[[], int]:
        """As `PackedRows.callback`."""
        return _levels

    def own_integers(self) -> list[int]:
        """As `PackedRows.own_integers`."""
        own_table = len(self.levels) > 1 or self.shape[0] == 1
        scale = 0 if self.scale is None else self.scale.data_ptr()
        return [
            *(self.bits, self.codes.data_ptr(), self.codes.nbytes),
            *(self.levels.data_ptr(), int(own_table), scale),
        ]


@compiled_callback
@no_type_check
def _levels(frame):
    job = integers_at(frame, LENGTH)
    columns, bits = job[2], job[16]
    memory = working_memory(2 * columns + 256 + token_memory(frame))
    codes = memory.ctypes.data
    weight = codes + (columns + 7) // 8 * 8
    table = weight + (columns + 1) // 2 * 8
    x = tokens_of(frame, table + 4 * 256)
    while True:
        first, last = take_piece(frame)
        if first == last:
            break
        for row in range(first, last):
            unpack_row(job[17], job[18], row * columns, bits, columns, codes)
            levels = job[19] + row * job[20] * 4 * (1 << bits)
            scale = floats_at(job[21] + 4 * row, 1)[0] if job[21] != 0 else np.float32(1)
            _scale_table(levels, scale, 1 << bits, table)
            _look_up(codes, table, 1 << bits, weight, columns)
            finish_row(frame, row, weight, x)
    memory[0] = 0  # it is needed until here


@compiled()
@no_type_check
def _scale_table(levels, scale, count, target):
    source, table = floats_at(levels, count), floats_at(target, count)
    for k in range(U(count)):
        table[k] = source[k] * scale


@compiled()
@no_type_check
def _look_up(codes, table, count, target, columns):
    index, values, weight = (
        bytes_at(codes, columns),
        floats_at(table, count),
        floats_at(target, columns),
    )
    if count == 4:
        _choose_4(index, values[0], values[1], values[2], values[3], weight)
    elif count == 8:
        _choose_8(index, values, weight)
    else:
        for j in range(U(columns)):
            weight[j] = values[index[j]]


@compiled()
@no_type_check
def _choose_4(index, v0, v1, v2, v3, weight):
    """Choices between registers, faster than look-ups while they are few."""
    for j in range(U(len(index))):
        code = index[j]
        low = v1 if code & np.uint8(1) else v0
        high = v3 if code & np.uint8(1) else v2
        weight[j] = high if code & np.uint8(2) else low


@compiled()
@no_type_check
def _choose_8(index, values, weight):
    v0, v1, v2, v3 = values[0], values[1], values[2], values[3]
    v4, v5, v6, v7 = values[4], values[5], values[6], values[7]
    for j in range(U(len(index))):
        code = index[j]
        odd = code & np.uint8(1)
        low = v1 if odd else v0
        second = v3 if odd else v2
        third = v5 if odd else v4
        fourth = v7 if odd else v6
        middle = code & np.uint8(2)
        low = second if middle else low
        third = fourth if middle else third
        weight[j] = third if code & np.uint8(4) else low
