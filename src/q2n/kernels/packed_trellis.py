"""Packed rows of trellis codes (linalg/trellis_code.py): a value for the state of each column.

A state consists of the last d codes of its column, so rows are made one after the other: the states
of all columns, 16 bits each, lie in the nearest cache, and a row's codes move them on,

    state = state / B + code B^(d-1).

A piece of rows begins with the states of the row above it, from the d - 1 rows before: in a
circular segment the first row comes after the last. The look-ups, one per weight from a table of 16
KB, take most of the time.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import no_type_check

import numpy as np
import torch
from jaxtyping import Float, Int, Int32
from torch import Tensor

from q2n.kernels.bit_stream import unpack_row
from q2n.kernels.compiled import compiled, compiled_callback
from q2n.kernels.memory import U, bytes_at, floats_at, halves_at, integers_at, working_memory
from q2n.kernels.packed_rows import (
    LENGTH,
    PackedRows,
    finish_row,
    take_piece,
    token_memory,
    tokens_of,
)
from q2n.kernels.stored_rows import codes_of_rows
from q2n.linalg import trellis_code


@dataclass(frozen=True, eq=False)
class TrellisRows(PackedRows):
    """Codes of 2, 3 or 4 bits, and scales in float32."""

    shape: tuple[int, int]
    bits: int
    codes: Int32[Tensor, " words"]
    scale: Float[Tensor, " out"]

    def dense(self, first: int, last: int) -> Float[Tensor, "rows in"]:
        """As `PackedRows.dense`: from the segments in which the rows lie."""
        ends = trellis_code.borders(self.shape[0])
        low = max(end for end in ends if end <= first)
        high = min(end for end in ends if end >= last)
        codes = codes_of_rows(self.codes, self.bits, low, high, self.shape[1])
        starts = [end - low for end in ends if low <= end <= high]
        segments = [
            trellis_code.segment_states(codes[a:b], self.bits)
            for a, b in zip(starts, starts[1:], strict=False)
        ]
        states = torch.cat(segments)[first - low : last - low]
        return self.values[states.long()] * self.scale[first:last, None]

    @cached_property
    def borders(self) -> Int[Tensor, " segments_and_one"]:
        """The first row of each segment, and the number of rows."""
        return torch.tensor(trellis_code.borders(self.shape[0]))

    @cached_property
    def rows_above(self) -> Int32[Tensor, "digits out"]:
        """For each row itself, the row before it in its circular segment, the one before that, ...;
        beside the codes."""
        ends = trellis_code.borders(self.shape[0])
        segments = [torch.arange(low, high) for low, high in zip(ends, ends[1:], strict=False)]
        places = range(trellis_code.DIGITS[self.bits])
        above = [torch.cat([segment.roll(place) for segment in segments]) for place in places]
        return torch.stack(above).int().to(self.codes.device)

    @cached_property
    def values(self) -> Float[Tensor, " states"]:
        """Of each state, beside the codes."""
        return trellis_code.values(self.bits).to(self.codes.device)

    @property
    def callback(self) -> Callable[[], int]:
        """As `PackedRows.callback`."""
        return _trellis

    def own_integers(self) -> list[int]:
        """As `PackedRows.own_integers`."""
        return [
            *(self.bits, self.codes.data_ptr(), self.codes.nbytes),
            *(self.scale.data_ptr(), self.values.data_ptr()),
            *(trellis_code.DIGITS[self.bits], self.borders.data_ptr(), len(self.borders)),
        ]


@compiled_callback
@no_type_check
def _trellis(frame):
    job = integers_at(frame, LENGTH)
    columns, bits = job[2], job[16]
    memory = working_memory(2 * columns + 4 + token_memory(frame))
    codes = memory.ctypes.data
    states = codes + (columns + 7) // 8 * 8
    weight = states + (columns + 3) // 4 * 8
    x = tokens_of(frame, weight + (columns + 1) // 2 * 8)
    while True:
        first, last = take_piece(frame)
        if first == last:
            break
        start, end = 0, 0  # of the segment
        for row in range(first, last):
            if row >= end:
                start, end = _segment(integers_at(job[22], job[23]), row)
            if row == first or row == start:
                _begin(frame, row, start, end, codes, states)
            _next_row(frame, row, codes, states)
            scale = floats_at(job[19] + 4 * row, 1)[0]
            _look_up(states, job[20], 1 << (bits * job[21]), scale, weight, columns)
            finish_row(frame, row, weight, x)
    memory[0] = 0  # it is needed until here


@compiled()
@no_type_check
def _segment(borders, row):
    """The rows at which the segment of a row begins and ends."""
    place = 0
    while borders[place + 1] <= row:
        place += 1
    return borders[place], borders[place + 1]


@compiled()
@no_type_check
def _begin(frame, row, start, end, codes, states):
    """The states of the row before."""
    job = integers_at(frame, LENGTH)
    halves_at(states, job[2])[:] = 0
    for back in range(job[21] - 1, 0, -1):
        _next_row(frame, start + (row - back - start) % (end - start), codes, states)


@compiled()
@no_type_check
def _next_row(frame, row, codes, states):
    job = integers_at(frame, LENGTH)
    columns, bits = job[2], job[16]
    unpack_row(job[17], job[18], row * columns, bits, columns, codes)
    _move(bytes_at(codes, columns), halves_at(states, columns), bits, bits * (job[21] - 1))


@compiled()
@no_type_check
def _move(codes, states, bits, top):
    down, up = np.uint16(bits), np.uint16(top)
    for j in range(U(len(states))):
        states[j] = (states[j] >> down) | (np.uint16(codes[j]) << up)


@compiled()
@no_type_check
def _look_up(states, values, count, scale, target, columns):
    index, table = halves_at(states, columns), floats_at(values, count)
    weight = floats_at(target, columns)
    for j in range(U(columns)):
        weight[j] = table[index[j]] * scale
