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

A segment is circular: it must start in the state in which it ends. That state is found beforehand,
with free ends, on the last rows of the segment followed by its first rows: after a few times d
rows, all sequences have passed through the same state. Given that state, the codes are the nearest.

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

_OVERLAP = 8
"""Rows before and after a segment's border that decide the state there, in units of d. Twice as
many lower the error by 0.8 %, half as many raise it by 1.4 %."""


class TrellisRule(NamedTuple):
    """The trellis of a number of bits, times a scale; a rule (column_rounding.py)."""

    values: Float[Tensor, " states"]
    """In the dtype of the weight."""
    bits: int

    def columns(self, a: int, b: int) -> "TrellisRule":
        """The rule itself: columns share the trellis."""
        return self

    def in_order(self, order: Int[Tensor, " visited"]) -> "TrellisRule":
        """The rule itself."""
        return self

    def nearest(
        self, target: Float[Tensor, "columns out"]
    ) -> tuple[Shaped[Tensor, "columns out"], Float[Tensor, "columns out"]]:
        """Codes of the sequences nearest to the columns of `target`, and their values."""
        codes = torch.empty_like(target, dtype=torch.int64)
        states = torch.empty_like(codes)
        ends = trellis_code.borders(target.shape[1])
        for low, high in zip(ends, ends[1:], strict=False):
            part = target[:, low:high]
            overlap = min(self.overlap, high - low)
            around = torch.cat([part[:, high - low - overlap :], part[:, :overlap]], 1)
            middle = self.nearest_states(around, None)[:, overlap - 1]
            states[:, low:high] = self.nearest_states(part, middle)
            codes[:, low:high] = states[:, low:high] // self._shared
        return codes, self.values[states]

    @property
    def _shared(self) -> int:
        """P."""
        return len(self.values) >> self.bits

    @property
    def overlap(self) -> int:
        """Rows before and after a segment's border that decide the state there."""
        return _OVERLAP * trellis_code.DIGITS[self.bits]

    def nearest_states(
        self, target: Float[Tensor, "n rows"], ends: Int[Tensor, " n"] | None
    ) -> Int[Tensor, "n rows"]:
        """The states of the sequences nearest to n columns. They start and end in the states `ends`
        if these are given, and are free otherwise."""
        cost = target.new_zeros(len(target), len(self.values))
        if ends is not None:
            cost.fill_(torch.inf).scatter_(1, ends[:, None], 0)
        previous = []
        for row in target.T:
            best, which = cost.view(len(target), self._shared, -1).min(2)
            previous.append(which)
            away = (row[:, None] - self.values).square().view(len(target), -1, self._shared)
            cost = (best[:, None] + away).flatten(1)
        state = cost.argmin(1) if ends is None else ends
        path = []
        for which in reversed(previous):
            path.append(state)
            shared = state % self._shared
            state = (shared << self.bits) + which.gather(1, shared[:, None]).squeeze(1)
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
    best = np.empty((max(rows, 2 * overlap) + 1, shared), values.dtype)
    before = np.empty(shared, values.dtype)
    for j in range(columns):
        trellis = (values, turned, symbols, best, before)
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
    rows, shared, base = len(target), best.shape[1], len(symbols)
    around = np.concatenate((target[rows - overlap :], target[:overlap]))
    best[0] = 0
    _forward(around, turned, symbols, best, before)
    state = np.argmin(best[2 * overlap])
    for t in range(2 * overlap - 1, overlap - 2, -1):
        state = _before(state, around[t], values, symbols, best[t])
    best[0] = np.inf
    best[0, state // base] = 0
    _forward(target, turned, symbols, best, before)
    for t in range(rows - 1, -1, -1):
        codes[t] = state // shared
        rounded[t] = values[state]
        state = _before(state, target[t - 1], values, symbols, best[t - 1])


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
def _before(state, x, values, symbols, best):
    """The state before this one, where row x came after `best`."""
    shared, base = len(best), len(symbols)
    first = state % shared * base
    value, best = values[first : first + base], best[first % shared :]
    nearest, least = 0, best[0] + (x - value[0]) * (x - value[0])
    for q in range(1, base):
        away = x - value[q]
        cost = best[q] + away * away
        less = cost < least
        nearest = q if less else nearest
        least = cost if less else least
    return first + nearest
