r"""Products with a packed weight, row by row: what all packed representations share.

A row of the weight is made from its codes in a buffer that stays in the nearest cache, is
multiplied with all tokens, and forgotten. So the memory of the weight is read once, packed, and
the dense weight exists nowhere. Rows are independent of each other: threads take pieces of them
from a common counter (torch_threads.py). With `tokens = -1` the rows are written out instead, in
the dtype of the model: the panels that a long prompt is multiplied with.

A representation (`PackedRows`) says how rows are made twice: `dense` in plain torch, which defines
the result and runs on any device, and a compiled callback. What a callback is to do stands in a
frame of 64-bit integers: first what all of them need, from place 16 on what one representation
needs.

    0  next row (the counter)      5  tokens              9  last row + 1
    1  rows in a piece             6  result, address     10 first row
    2  columns                     7  result's dtype      11 bias, address, or 0
    3  x, address                  8  entries from one token to the next in the result
    4  x's dtype
"""

import ctypes
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property
from typing import no_type_check

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from q2n.kernels import torch_threads
from q2n.kernels.compiled import compiled
from q2n.kernels.memory import U, add_to, bits_of, floats_at, halves_at, integers_at, words_at

_OWN = 16
"""Where the integers of a representation begin."""
LENGTH = 32
_PIECE = 2**14
"""Weights that a thread takes at once; some microseconds."""
KINDS = {torch.float32: 0, torch.bfloat16: 1}
"""Dtypes that callbacks read and write, by their number in a frame."""
_FRAME = ctypes.c_int64 * LENGTH


class PackedRows(ABC):
    """A packed weight of shape (out, in)."""

    shape: tuple[int, int]

    @abstractmethod
    def dense(self, first: int, last: int) -> Float[Tensor, "rows in"]:
        """Rows first .. last - 1 in float32, in plain torch on any device."""

    @property
    @abstractmethod
    def callback(self) -> Callable[[], int]:
        """The compiled callback's address, on a CPU."""

    @abstractmethod
    def own_integers(self) -> list[int]:
        """What the callback reads from place 16 of the frame: sizes, and addresses of tensors that
        this object keeps alive."""

    @cached_property
    def frame(self) -> bytes:
        """The frame of every call, with zeros where calls differ."""
        rows, columns = self.shape
        piece = max(1, _PIECE // columns)
        common = [0, piece, columns, 0, 0, 0, 0, 0, rows, rows, *[0] * 6]
        numbers = common + self.own_integers()
        return bytes(_FRAME(*numbers))

    @cached_property
    def address(self) -> int:
        """Of the callback; compiles it."""
        return self.callback()


def product_reference(
    x: Float[Tensor, "tokens in"], weight: PackedRows, bias: Float[Tensor, " out"] | None
) -> Float[Tensor, "tokens out"]:
    """`x W^T + b` in the dtype of x."""
    bias = None if bias is None else bias.to(x.dtype)
    return functional.linear(x, weight.dense(0, weight.shape[0]).to(x.dtype), bias)


def product_numba(
    x: Float[Tensor, "tokens in"], weight: PackedRows, bias: Float[Tensor, " out"] | None
) -> Float[Tensor, "tokens out"]:
    """The same on a CPU, W as it is in float32, sums in float32. `bias` is in float32."""
    x = x.contiguous()
    kind = KINDS.get(x.dtype)
    if kind is None:
        return product_numba(x.float(), weight, bias).to(x.dtype)
    result = torch.empty(len(x), weight.shape[0], dtype=x.dtype)
    frame = _FRAME.from_buffer_copy(weight.frame)
    frame[3], frame[4], frame[5] = x.data_ptr(), kind, len(x)
    frame[6], frame[7] = result.data_ptr(), kind
    if bias is not None:
        frame[11] = bias.data_ptr()
    torch_threads.run(weight.address, frame)
    return result


def rows_reference(
    like: Float[Tensor, "..."], weight: PackedRows, first: int, last: int
) -> Float[Tensor, "rows in"]:
    """Rows first .. last - 1 of the dense weight in the dtype of `like` and on its device, rounded
    once from float32."""
    return weight.dense(first, last).to(like.dtype)


def rows_numba(
    like: Float[Tensor, "..."], weight: PackedRows, first: int, last: int
) -> Float[Tensor, "rows in"]:
    """The same on a CPU."""
    dtype = like.dtype if like.dtype in KINDS else torch.float32
    result = torch.empty(last - first, weight.shape[1], dtype=dtype)
    frame = _FRAME.from_buffer_copy(weight.frame)
    frame[0] = frame[10] = first
    frame[5], frame[9] = -1, last
    frame[6], frame[7] = result.data_ptr(), KINDS[dtype]
    torch_threads.run(weight.address, frame)
    return result.to(like.dtype)


@compiled()
@no_type_check
def take_piece(frame):
    """The first row of the next piece of work, and one behind its last; equal at the end."""
    job = integers_at(frame, LENGTH)
    first = add_to(frame, job[1])
    return min(first, job[9]), min(first + job[1], job[9])


@compiled()
@no_type_check
def token_memory(frame):
    """Eight bytes of working memory that x takes in float32."""
    job = integers_at(frame, LENGTH)
    return (job[5] * job[2] + 1) // 2 if job[4] == 1 else 0


@compiled()
@no_type_check
def tokens_of(frame, target):
    """The address of x in float32; it is written to `target` if it has another dtype."""
    job = integers_at(frame, LENGTH)
    if job[4] == 0:
        return job[3]
    count = job[5] * job[2]
    halves, x = halves_at(job[3], count), words_at(target, count)
    for i in range(U(count)):
        x[i] = np.uint32(halves[i]) << np.uint32(16)
    return target


@compiled()
@no_type_check
def finish_row(frame, row, weight, x):
    """Multiply a finished row of the weight, at an address, with all tokens, or write it out."""
    job = integers_at(frame, LENGTH)
    columns = job[2]
    if job[5] < 0:
        place = (row - job[10]) * columns
        if job[7] == 0:
            _copy(floats_at(weight, columns), floats_at(job[6] + 4 * place, columns))
        else:
            _round(words_at(weight, columns), halves_at(job[6] + 2 * place, columns))
        return
    bias = floats_at(job[11] + 4 * row, 1)[0] if job[11] != 0 else np.float32(0)
    for token in range(job[5]):
        place = token * job[8] + row
        start = x + 4 * token * columns
        value = _dot(floats_at(weight, columns), floats_at(start, columns)) + bias
        if job[7] == 0:
            floats_at(job[6] + 4 * place, 1)[0] = value
        else:
            halves_at(job[6] + 2 * place, 1)[0] = rounded(bits_of(value))


@compiled(fastmath={"reassoc", "contract", "nsz"})
@no_type_check
def _dot(weight, x):
    total = np.float32(0)
    for j in range(U(len(weight))):
        total += weight[j] * x[j]
    return total


@compiled()
@no_type_check
def _copy(source, target):
    for j in range(U(len(source))):
        target[j] = source[j]


@compiled()
@no_type_check
def _round(source, target):
    for j in range(U(len(source))):
        target[j] = rounded(source[j])


@compiled()
@no_type_check
def rounded(value):
    """From the bits of float32 to those of bfloat16, to the nearest, ties to even."""
    value += np.uint32(0x7FFF) + ((value >> np.uint32(16)) & np.uint32(1))
    return np.uint16(value >> np.uint32(16))
