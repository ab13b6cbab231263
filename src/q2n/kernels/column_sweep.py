"""The column sweep: round a layer column by column, each with the feedback of those before.

Letters: `W` original weight, `E = W - Q` error so far, `M` feedback (linalg/factor.py).
Column j is rounded from `W_j + (E M)_j`. Columns go in blocks: what the finished blocks
feed into block [a, b) is one matrix product, `W_ab + E_{<a} M_{<a, ab}`; within the block
a kernel goes on column by column (rounding.py, which also has the grids).

Everything here is transposed: a column of the layer is a row in memory.
Parameters of a group are either given beforehand (static) or, by `refit`, found when the
sweep reaches the group's first column, from the values GPTQ's working copy has then.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from q2n.kernels.column_rounding import RoundBlock, Rule, round_with_numba, round_with_tensors
from q2n.linalg.factor import pending


@dataclass(frozen=True, eq=False)
class Refit:
    """Parameters that are found on the way."""

    group: Int[Tensor, " in"]
    """Group of each visited column; the columns of a group are neighbours."""
    write: Callable[[int, Float[Tensor, "size out"]], None]
    """Fit a group to its updated weights and write its parameters into the rule's tensors."""


@dataclass(frozen=True, eq=False)
class Sweep:
    """What the sweep found: columns as rows, in visiting order."""

    codes: UInt8[Tensor, "in out"]
    error: Float[Tensor, "in out"]
    """W - Q."""

    def layer_codes(self, order: Int[Tensor, " visited"], columns: int) -> UInt8[Tensor, "out in"]:
        """The codes in the layer's own order of its `columns`; `order` is that of the visits. A
        column that was not visited has code 0."""
        codes = self.codes.new_zeros(self.codes.shape[1], columns)
        codes[:, order] = self.codes.T
        return codes


def sweep(
    weight: Float[Tensor, "in out"],
    matrix: Float[Tensor, "in in"],
    rule: Rule,
    *,
    block_size: int,
    refit: Refit | None = None,
    round_block: RoundBlock | None = None,
    offset: Float[Tensor, "in out"] | None = None,
) -> Sweep:
    """Round `weight` to the grid of `rule`. `offset` is added to the value that is rounded; the
    error remains that to `weight`. `round_block` defaults to the one for the device."""
    error = torch.empty_like(weight)
    codes = torch.empty(weight.shape, dtype=torch.uint8, device=weight.device)
    if round_block is None:
        round_block = round_with_numba if weight.device.type == "cpu" else round_with_tensors
    borders = _borders(len(weight), block_size, refit)
    for a, b in zip(borders, borders[1:], strict=False):
        if refit is not None and (a == 0 or refit.group[a] != refit.group[a - 1]):
            end = int((refit.group == refit.group[a]).sum()) + a
            refit.write(int(refit.group[a]), pending(weight, error, matrix, a, end))
        target = torch.addmm(weight[a:b], matrix[:a, a:b].T, error[:a])
        if offset is not None:
            target += offset[a:b]
        round_block(
            target, weight[a:b], matrix[a:b, a:b], rule.columns(a, b), codes[a:b], error[a:b]
        )
    return Sweep(codes, error)


def _borders(m: int, block_size: int, refit: Refit | None) -> list[int]:
    """Where blocks start, and the end: every `block_size` columns, anew in each group that is
    fitted on the way."""
    if refit is None:
        return [*range(0, m, block_size), m]
    starts = [0, *(torch.nonzero(refit.group.diff()).flatten() + 1).tolist(), m]
    spans = zip(starts, starts[1:], strict=False)
    return [*(i for a, b in spans for i in range(a, b, block_size)), m]
