"""The column sweep: round a layer column by column, each with the feedback of those before.

Letters: `W` original weight, `E = W - Q` error so far, `M` feedback (linalg/factor.py).
Column j is rounded from `W_j + (E M)_j`. Columns go in blocks: what the finished blocks
feed into block [a, b) is one matrix product, `W_ab + E_{<a} M_{<a, ab}`; within the block
a kernel goes on column by column, all rows in parallel.

Everything here is transposed: a column of the layer is a row in memory, and a fixed
number of neighbouring output rows (a tile) is rounded at once by vector instructions.
Parameters of a group are either given beforehand (static) or, by `refit`, found when the
sweep reaches the group's first column, from the values GPTQ's working copy has then.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import no_type_check

import numba
import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from q2n.linalg.factor import pending

_TILE = 64

Refit = Callable[[Float[Tensor, "size out"]], tuple[Tensor, Tensor]]
"""Updated weights of a group -> its scales and zero points, both [out]."""

RoundBlock = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, int, Tensor, Tensor], None]
"""Round the columns of a block in turn: (target, weight, matrix, scale, zero, group, top) are
read (target is used up), (codes, error) are written."""


@dataclass(frozen=True, eq=False)
class Sweep:
    """What the sweep found: columns as rows, in visiting order."""

    codes: UInt8[Tensor, "m out"]
    error: Float[Tensor, "m out"]
    """W - Q."""


def sweep(
    weight: Float[Tensor, "m out"],
    matrix: Float[Tensor, "m m"],
    scale: Float[Tensor, "groups out"],
    zero: UInt8[Tensor, "groups out"],
    group: Int[Tensor, " m"],
    *,
    top: int,
    block_size: int,
    refit: Refit | None = None,
    round_block: RoundBlock | None = None,
    offset: Float[Tensor, "m out"] | None = None,
) -> Sweep:
    """Round `weight` to codes 0..top.

    `scale` (in the dtype of `weight`) and `zero` hold the parameters of each group,
    `group` the group of each visited column. With `refit` they are overwritten, group by
    group, when the sweep reaches a group; the columns of a group must then be neighbours.
    `round_block` defaults to the one for the device. `offset` is added to the value that is
    rounded; the error remains that to `weight`.
    """
    error = torch.empty_like(weight)
    codes = torch.empty(weight.shape, dtype=torch.uint8, device=weight.device)
    if round_block is None:
        round_block = round_with_numba if weight.device.type == "cpu" else round_with_tensors
    borders = _borders(group, block_size, refit is not None)
    for a, b in zip(borders, borders[1:], strict=False):
        if refit is not None and (a == 0 or group[a] != group[a - 1]):
            end = int((group == group[a]).sum()) + a
            scale[group[a]], zero[group[a]] = refit(pending(weight, error, matrix, a, end))
        target = torch.addmm(weight[a:b], matrix[:a, a:b].T, error[:a])
        if offset is not None:
            target += offset[a:b]
        round_block(
            target,
            weight[a:b],
            matrix[a:b, a:b],
            scale,
            zero,
            group[a:b],
            top,
            codes[a:b],
            error[a:b],
        )
    return Sweep(codes, error)


def _borders(group: Int[Tensor, " m"], block_size: int, at_groups: bool) -> list[int]:
    """Where blocks start, and the end: every `block_size` columns, anew in each group if
    `at_groups`."""
    m = len(group)
    if not at_groups:
        return [*range(0, m, block_size), m]
    starts = [0, *(torch.nonzero(group.diff()).flatten() + 1).tolist(), m]
    spans = zip(starts, starts[1:], strict=False)
    return [*(i for a, b in spans for i in range(a, b, block_size)), m]


def round_with_numba(
    target: Tensor,
    weight: Tensor,
    matrix: Tensor,
    scale: Tensor,
    zero: Tensor,
    group: Tensor,
    top: int,
    codes: Tensor,
    error: Tensor,
) -> None:
    """Tiles of rows in parallel, on a CPU."""
    _kernel(
        *(t.numpy() for t in (target, weight, matrix.contiguous(), scale, zero, group)),
        weight.numpy().dtype.type(top),
        codes.numpy(),
        error.numpy(),
    )


@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
@no_type_check
def _kernel(target, weight, matrix, scale, zero, group, top, codes, error):
    columns, rows = target.shape
    for tile in numba.prange((rows + _TILE - 1) // _TILE):
        low = tile * _TILE
        high = min(low + _TILE, rows)
        for j in range(columns):
            s = scale[group[j], low:high]
            z = zero[group[j], low:high]
            t, w = target[j, low:high], weight[j, low:high]
            c, e = codes[j, low:high], error[j, low:high]
            for r in range(high - low):
                shift = target.dtype.type(z[r])
                code = min(max(np.rint(t[r] / s[r]) + shift, 0 * top), top)
                c[r] = np.uint8(code)
                e[r] = w[r] - s[r] * (code - shift)
            for k in range(j + 1, columns):
                factor = matrix[j, k]
                later = target[k, low:high]
                for r in range(high - low):
                    later[r] += factor * e[r]


def round_with_tensors(
    target: Tensor,
    weight: Tensor,
    matrix: Tensor,
    scale: Tensor,
    zero: Tensor,
    group: Tensor,
    top: int,
    codes: Tensor,
    error: Tensor,
) -> None:
    """The same arithmetic in tensor operations, for a device that numba does not reach."""
    scales, shifts = scale[group], zero[group].to(weight.dtype)
    for j in range(len(target)):
        code = (torch.round(target[j] / scales[j]) + shifts[j]).clamp_(0, top)
        codes[j] = code
        error[j] = weight[j] - scales[j] * (code - shifts[j])
        target[j + 1 :] += matrix[j, j + 1 :, None] * error[j]
