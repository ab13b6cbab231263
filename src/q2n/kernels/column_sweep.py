"""The column sweep: round a layer column by column, each with feedback from the earlier ones.

Letters: `W` original weight, `Q` rounded weight, `E = W - Q` error, `M` feedback
(linalg/factor.py). Column j is rounded from `W_j + (E M)_j`. Columns are taken in blocks: what all
earlier blocks contribute to block [a, b) is one matrix product, `W_ab + E_{<a} M_{<a, ab}`; within
the block, the operation of column_rounding.py goes on column by column.

Everything here is transposed: a column of the layer is a row in memory. Between two blocks nothing
is read back from the device, so that on a GPU the blocks queue up.

The parameters of a group are either known beforehand (static groups), or fitted by `group_fit` when
the sweep reaches the group's first column, to the values that GPTQ's working copy has then.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from q2n.kernels.dispatch import round_columns
from q2n.kernels.rounding_rules import Rule
from q2n.linalg.factor import pending


@dataclass(frozen=True, eq=False)
class GroupFit:
    """Parameters of groups that are fitted during the sweep."""

    group: Int[Tensor, " in"]
    """Group of each visited column; the columns of a group are neighbours."""
    write: Callable[[int, Float[Tensor, "size out"]], None]
    """Called with a group's index and its updated weights: fits the group and writes its parameters
    into the rule's tensors."""


@dataclass(frozen=True, eq=False)
class Sweep:
    """The result of a sweep: columns as rows, in visiting order."""

    codes: UInt8[Tensor, "in out"]
    error: Float[Tensor, "in out"]
    """E."""

    def layer_codes(self, order: Int[Tensor, " visited"], columns: int) -> UInt8[Tensor, "out in"]:
        """The codes in the layer's own order of columns, from the `order` of the visits. A column
        that was not visited has code 0."""
        codes = self.codes.new_zeros(self.codes.shape[1], columns)
        codes[:, order] = self.codes.T
        return codes


def sweep(
    weight: Float[Tensor, "in out"],
    matrix: Float[Tensor, "in in"],
    rule: Rule,
    *,
    block_size: int,
    group_fit: GroupFit | None = None,
    offset: Float[Tensor, "in out"] | None = None,
) -> Sweep:
    """Round `weight` to the grid of `rule`, with the upper triangle of the feedback `matrix`.

    `offset` is added to the values before they are rounded; the error still refers to `weight`."""
    error = torch.empty_like(weight)
    codes = torch.empty(weight.shape, dtype=torch.uint8, device=weight.device)
    ends = {} if group_fit is None else _ends(group_fit)
    borders = _borders(len(weight), block_size, list(ends))
    for a, b in zip(borders, borders[1:], strict=False):
        if group_fit is not None and a in ends:
            group, end = ends[a]
            group_fit.write(group, pending(weight, error, matrix, a, end))
        target = torch.addmm(weight[a:b], matrix[:a, a:b].T, error[:a])
        if offset is not None:
            target += offset[a:b]
        codes[a:b], error[a:b] = round_columns(
            target, weight[a:b], matrix[a:b, a:b], rule.columns(a, b)
        )
    return Sweep(codes, error)


def _ends(group_fit: GroupFit) -> dict[int, tuple[int, int]]:
    """By the first column of each group: its index, and the column after its last. Read from the
    device once, so that the sweep never waits for it."""
    groups = group_fit.group.tolist()
    starts = [a for a in range(len(groups)) if a == 0 or groups[a] != groups[a - 1]]
    spans = zip(starts, [*starts[1:], len(groups)], strict=True)
    return {a: (groups[a], end) for a, end in spans}


def _borders(m: int, block_size: int, starts: Sequence[int]) -> list[int]:
    """Where blocks start, and the end: every `block_size` columns, counted from each of `starts`
    (those of the groups that are fitted during the sweep)."""
    starts = [*(starts or [0]), m]
    spans = zip(starts, starts[1:], strict=False)
    return [*(i for a, b in spans for i in range(a, b, block_size)), m]
