r"""Rounding a column to a trellis code (linalg/trellis_code.py): the Viterbi algorithm.

Letters: `B = 2^b` symbols, `S = B^d` states, `P = S / B`. A state s consists of d codes, the newest
first; with the next code c it becomes `c P + s // B`. So the B states `p B .. p B + B - 1` lead to
the same B states `p, P + p, 2 P + p, ..`, and of the former only the nearest matters. Let cost[s]
be the least squared distance between the rows so far and a sequence that ends in state s. Then one
more row x gives

    best[p] = min_q cost[p B + q],      cost[c P + p] = best[p] + (x - values[c P + p])^2.

From the last state the sequence is traced back row by row, by comparing the costs of B states each
time; the first digit of each state on it is a code. About 4 S operations per weight: the numba
kernel has B^(d-2) states in a row for the processor's vectors, those that differ in neither the
newest nor the oldest code (`best` and the values are turned for that), and keeps no cost.

A segment is circular: it must start with the d - 1 codes with which it ends, one of P *starts*. The
search goes through the last rows of the segment and on through all of them. Where it comes to the
first row, the nearest sequence has a start that the rows before and all rows behind have chosen: a
few times d rows back, all sequences are one. The nearest sequence that ends with this start begins
with it too, as a rule, and is then the nearest of all that do; else that one is searched by itself.

Segments are independent of each other throughout the sweep: in the numba kernel each goes through
the columns of a block by itself, in parallel with others. The reference is `TrellisRule.nearest`
in the loop of column_rounding.py: plain torch, row by row, correct and slow.
"""

from typing import NamedTuple, no_type_check

import numba
import numpy as np
import torch
from jaxtyping import Float, Int, Shaped, UInt8
from torch import Tensor

from q2n.kernels.column_rounding import round_columns_reference
from q2n.kernels.compiled import compiled
from q2n.kernels.optional import has_triton
from q2n.linalg import trellis_code

_OVERLAP = 12
"""Rows before the first that help to choose the start, in units of d. With 16 the error is 0.1 %
less, with 8 0.3 % more."""


class TrellisRule(NamedTuple):
    """The trellis of a number of bits, times a scale; a rule (column_rounding.py)."""

    values: Float[Tensor, " states"]
    """In the dtype of the weight."""
    bits: int

    def columns(self, a: int, b: int) -> "TrellisRule":
        """The rule itself: columns share the trellis."""
        return self

    def rows(self, a: int, b: int) -> "TrellisRule":
        """The rule itself. The borders of segments are those of these rows by themselves."""
        return self

    def in_order(self, order: Int[Tensor, " visited"]) -> "TrellisRule":
        """The rule itself."""
        return self

    def nearest(
        self, target: Float[Tensor, "columns out"]
    ) -> tuple[Shaped[Tensor, "columns out"], Float[Tensor, "columns out"]]:
        """Codes of the sequences nearest to the columns of `target`, and their values."""
        ends = trellis_code.borders(target.shape[1])
        parts = [target[:, low:high] for low, high in zip(ends, ends[1:], strict=False)]
        states = torch.cat([self._circles(part) for part in parts], 1)
        return states // self._shared, self.values[states]

    @property
    def _shared(self) -> int:
        """P."""
        return len(self.values) >> self.bits

    @property
    def overlap(self) -> int:
        """Rows before the first that help to choose the start."""
        return _OVERLAP * trellis_code.DIGITS[self.bits]

    def circles_from(
        self, target: Float[Tensor, "n rows"], start: Int[Tensor, " n"]
    ) -> Int[Tensor, "n rows"]:
        """The states of the sequences nearest to n columns that have these starts."""
        best = target.new_full((len(target), self._shared), torch.inf)
        _, previous = self._forward(target, best.scatter_(1, start[:, None], 0))
        return self._back(previous, start)

    def _circles(self, target: Float[Tensor, "n rows"]) -> Int[Tensor, "n rows"]:
        """The states of the circular sequences nearest to n columns."""
        best = target.new_zeros(len(target), self._shared)
        best, _ = self._forward(target[:, -self.overlap :], best)
        best, previous = self._forward(target, best)
        start = self._back(previous, best.argmin(1))[:, 0] % self._shared
        states = self._back(previous, start)
        others = (states[:, 0] % self._shared != start).nonzero().flatten()
        states[others] = self.circles_from(target[others], start[others])
        return states

    def _forward(
        self, target: Float[Tensor, "n rows"], best: Float[Tensor, "n shared"]
    ) -> tuple[Float[Tensor, "n shared"], list[Int[Tensor, "n shared"]]]:
        """`best` after all rows, and after each the oldest code of the state that has it."""
        previous, base = [], 1 << self.bits
        for row in target.T:
            away = (row[:, None] - self.values).square()
            cost = best.repeat(1, base) + away
            best, which = cost.view(-1, self._shared, base).min(2)
            previous.append(which)
        return best, previous

    def _back(
        self, previous: list[Int[Tensor, "n shared"]], end: Int[Tensor, " n"]
    ) -> Int[Tensor, "n rows"]:
        """The states of the nearest sequences with these d - 1 codes at their ends."""
        path = []
        for which in reversed(previous):
            state = (end << self.bits) + which.gather(1, end[:, None]).squeeze(1)
            path.append(state)
            end = state % self._shared
        return torch.stack(path[::-1], 1)


def round_to_trellis_numba(
    target: Float[Tensor, "columns out"],
    weight: Float[Tensor, "columns out"],
    matrix: Float[Tensor, "columns columns"],
    rule: TrellisRule,
) -> tuple[UInt8[Tensor, "columns out"], Float[Tensor, "columns out"]]:
    """As `column_rounding.round_columns_reference` for this rule, on a CPU, segments of rows in
    parallel."""
    target = target.clone(memory_format=torch.contiguous_format)
    codes, error = torch.empty_like(target, dtype=torch.uint8), torch.empty_like(target)
    _kernel(
        target.numpy(),
        weight.contiguous().numpy(),
        matrix.contiguous().numpy(),
        rule.values.numpy(),
        rule.bits,
        rule.overlap,
        np.array(trellis_code.borders(target.shape[1])),
        codes.numpy(),
        error.numpy(),
    )
    return codes, error


def round_to_trellis_triton(
    target: Float[Tensor, "columns out"],
    weight: Float[Tensor, "columns out"],
    matrix: Float[Tensor, "columns columns"],
    rule: TrellisRule,
) -> tuple[UInt8[Tensor, "columns out"], Float[Tensor, "columns out"]]:
    """The same on a GPU: in Triton where it is installed."""
    if not has_triton():
        return round_columns_reference(target, weight, matrix, rule)
    from q2n.kernels import triton_trellis  # needs triton

    return triton_trellis.round_to_trellis(
        target, weight, matrix, rule.values, rule.bits, rule.overlap
    )


_2_BITS, _3_BITS, _4_BITS = (tuple(range(2**bits)) for bits in (2, 3, 4))
"""The symbols for 2, 3 and 4 bits. A tuple's type holds its length: loops over it are unrolled."""


@compiled(parallel=True)
@no_type_check
def _kernel(target, weight, matrix, values, bits, overlap, borders, codes, error):
    """Fill `codes` and `error`; `target` is used up."""
    for segment in numba.prange(len(borders) - 1):
        a, b = borders[segment], borders[segment + 1]
        part = (target[:, a:b], weight[:, a:b], matrix, values, codes[:, a:b], error[:, a:b])
        if bits == 2:
            _round_segment(*part, min(overlap, b - a), _2_BITS)
        elif bits == 3:
            _round_segment(*part, min(overlap, b - a), _3_BITS)
        else:
            _round_segment(*part, min(overlap, b - a), _4_BITS)


@compiled()
@no_type_check
def _round_segment(target, weight, matrix, values, codes, error, overlap, symbols):
    """All columns of one segment."""
    columns, rows = target.shape
    base, shared = len(symbols), len(values) // len(symbols)
    turned = np.empty((base, shared), values.dtype)
    for c in range(base):
        _turn(values[c * shared : (c + 1) * shared], symbols, turned[c])
    best = np.empty((rows + 1, shared), values.dtype)
    before = np.empty(shared, values.dtype)
    trellis = (values, turned, symbols, best, before)
    for j in range(columns):
        _nearest(target[j], overlap, trellis, codes[j], error[j])
        e = error[j]
        for r in range(rows):
            e[r] = weight[j, r] - e[r]
        for k in range(j + 1, columns):
            factor, later = matrix[j, k], target[k]
            for r in range(rows):
                later[r] += factor * e[r]


@compiled()
@no_type_check
def _turn(numbers, symbols, turned):
    """Numbers by the codes behind the newest, so that the oldest comes first."""
    base, middle = len(symbols), len(numbers) // len(symbols)
    for m in range(middle):
        for q in range(base):
            turned[q * middle + m] = numbers[m * base + q]


@compiled()
@no_type_check
def _nearest(target, overlap, trellis, codes, rounded):
    """Codes of the nearest circular sequence, and their values."""
    values, turned, symbols, best, before = trellis
    rows = len(target)
    best[0] = 0
    _forward(target[rows - overlap :], turned, symbols, best, before)
    best[0] = best[overlap]
    _forward(target, turned, symbols, best, before)
    start = _back(target, np.argmin(best[rows]), values, symbols, best, codes, rounded)
    if _back(target, start, values, symbols, best, codes, rounded) != start:
        best[0] = np.inf
        best[0, start] = 0
        _forward(target, turned, symbols, best, before)
        _back(target, start, values, symbols, best, codes, rounded)


@compiled()
@no_type_check
def _forward(target, turned, symbols, best, before):
    """One row after the other: `best` before each row and after the last."""
    base, middle = len(symbols), best.shape[1] // len(symbols)
    for t in range(len(target)):
        x = target[t]
        _turn(best[t], symbols, before)
        for c in range(base):
            after, value = best[t + 1, c * middle : (c + 1) * middle], turned[c]
            for m in range(middle):
                away = x - value[m]
                least = before[m] + away * away
                for q in range(1, base):
                    away = x - value[q * middle + m]
                    least = min(least, before[q * middle + m] + away * away)
                after[m] = least


@compiled()
@no_type_check
def _back(target, end, values, symbols, best, codes, rounded):
    """Codes of the nearest sequence with these d - 1 codes at its end, and their values. Returns
    its start."""
    shared = best.shape[1]
    for t in range(len(target) - 1, -1, -1):
        state = _last(end, target[t], values, symbols, best[t])
        codes[t] = state // shared
        rounded[t] = values[state]
        end = state % shared
    return end


@compiled()
@no_type_check
def _last(end, x, values, symbols, best):
    """The nearest state with these d - 1 newest codes, after row x has come to `best`."""
    base = len(symbols)
    first = end * base
    value, best = values[first : first + base], best[first % len(best) :]
    nearest, least = 0, best[0] + (x - value[0]) * (x - value[0])
    for q in range(1, base):
        away = x - value[q]
        cost = best[q] + away * away
        less = cost < least
        nearest = q if less else nearest
        least = cost if less else least
    return first + nearest
