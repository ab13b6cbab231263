"""Packed rows of a uniform grid: `scale * (code - zero)`, a scale and a zero point per group.

Codes and zero points are bitstreams over all entries (formats/packing.py); scales are stored in
16 or 32 bits, which the kernel reads as they are. Groups end at given columns, so that they may be
of any length.
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
from q2n.kernels.memory import (
    U,
    bytes_at,
    floats_at,
    halves_at,
    integers_at,
    words_at,
    working_memory,
)
from q2n.kernels.packed_rows import (
    LENGTH,
    PackedRows,
    finish_row,
    take_piece,
    token_memory,
    tokens_of,
)
from q2n.kernels.stored_rows import codes_of_rows

_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


@dataclass(frozen=True, eq=False)
class UniformRows(PackedRows):
    """Codes of `bits` bits, scales [out, groups] and zero points."""

    shape: tuple[int, int]
    bits: int
    codes: Int32[Tensor, " words"]
    scale: Float[Tensor, "out groups"]
    zero: Int32[Tensor, " zero_words"] | None
    """None: 2^(bits - 1) everywhere."""
    ends: Int[Tensor, " groups"]
    """One behind the last column of each group, ascending."""

    @cached_property
    def lengths(self) -> Int[Tensor, " groups"]:
        """Columns of each group, beside the codes."""
        return self.ends.diff(prepend=self.ends.new_zeros(1)).to(self.codes.device)

    @cached_property
    def group(self) -> Int32[Tensor, " in"]:
        """The group of each column, beside the codes."""
        number = torch.arange(len(self.lengths), device=self.codes.device)
        return number.repeat_interleave(self.lengths).int()

    def dense(self, first: int, last: int) -> Float[Tensor, "rows in"]:
        """As `PackedRows.dense`."""
        steps = codes_of_rows(self.codes, self.bits, first, last, self.shape[1]).float()
        groups = self.lengths
        if self.zero is None:
            steps -= 2 ** (self.bits - 1)
        else:
            zero = codes_of_rows(self.zero, self.bits, first, last, len(self.ends))
            steps -= zero.float().repeat_interleave(groups, 1)
        return steps * self.scale[first:last].float().repeat_interleave(groups, 1)

    @property
    def callback(self) -> Callable[[], int]:
        """As `PackedRows.callback`."""
        return _uniform

    def own_integers(self) -> list[int]:
        """As `PackedRows.own_integers`."""
        zero = self.zero
        return [
            *(self.bits, self.codes.data_ptr(), self.codes.nbytes),
            *(self.scale.data_ptr(), _DTYPES[self.scale.dtype]),
            *((0, 0) if zero is None else (zero.data_ptr(), zero.nbytes)),
            *(self.ends.data_ptr(), len(self.ends)),
        ]


@compiled_callback
@no_type_check
def _uniform(frame):
    job = integers_at(frame, LENGTH)
    columns, groups, bits = job[2], job[24], job[16]
    memory = working_memory(2 * columns + 2 * groups + 32 + token_memory(frame))
    codes = memory.ctypes.data
    weight = codes + (columns + 63) // 64 * 64
    scale = weight + 4 * columns
    zero = (scale + 4 * groups + 7) // 8 * 8
    x = tokens_of(frame, (zero + groups + 15) // 8 * 8)
    bytes_at(zero, groups)[:] = 1 << (bits - 1)
    while True:
        first, last = take_piece(frame)
        if first == last:
            break
        for row in range(first, last):
            unpack_row(job[17], job[18], row * columns, bits, columns, codes)
            _read_scale(job[19], job[20], row * groups, groups, scale)
            if job[21] != 0:
                unpack_row(job[21], job[22], row * groups, bits, groups, zero)
            _row(codes, integers_at(job[23], groups), scale, zero, weight, columns)
            finish_row(frame, row, weight, x)
    memory[0] = 0  # it is needed until here


@compiled()
@no_type_check
def _read_scale(address, kind, start, count, target):
    scale, bits = floats_at(target, count), words_at(target, count)
    if kind == 0:
        stored = floats_at(address + 4 * start, count)
        for g in range(U(count)):
            scale[g] = stored[g]
        return
    halves = halves_at(address + 2 * start, count)
    if kind == 1:
        for g in range(U(count)):
            bits[g] = np.uint32(halves[g]) << np.uint32(16)
        return
    for g in range(U(count)):  # float16: exponent and fraction moved, then 2^112 times as large
        half = np.uint32(halves[g])
        bits[g] = (half & np.uint32(0x7FFF)) << np.uint32(13)
    for g in range(U(count)):
        scale[g] *= np.float32(2.0**112)
    for g in range(U(count)):
        bits[g] |= (np.uint32(halves[g]) & np.uint32(0x8000)) << np.uint32(16)


@compiled()
@no_type_check
def _row(codes, ends, scale, zero, weight, columns):
    steps, values = bytes_at(codes, columns), floats_at(weight, columns)
    scales, zeros = floats_at(scale, len(ends)), bytes_at(zero, len(ends))
    start = U(0)
    for g in range(len(ends)):
        end = U(ends[g])
        factor, middle = scales[g], np.float32(zeros[g])
        for j in range(start, end):
            values[j] = (np.float32(steps[j]) - middle) * factor
        start = end
