r"""AWQ (Lin et al. 2024): channels that carry large activations are rounded more finely.

Letters: x the tensor, W the linears that read it (one above the other), Q(.) round to nearest on
the run's own grid, `a_j` the mean of |x_j| over tokens, r a ratio.

Search: for r = 0, 1/20, .. 19/20

    s = max(a^r, 1e-4),  divided by sqrt(max s min s),
    loss(r) = sum |F(Q(W diag(s)) diag(s)^-1) - F(W)|^2,

and the s of the least loss stays; r = 0 is plain rounding. As published F is the output of the
module around: for q, k, v the attention's and for gate, up the MLP's, by a forward pass for each
ratio, here on `rewrite_windows` windows of the text. For o and down it is the linear's own output,
whose loss is tr(E G E^T) with the Gram matrix G, without a pass; so it could be for all, which is
faster and worse: scores in the softmax hide most of what q and k lose, and sum |E x|^2 counts it.

Other than as published x is what the quantized prefix gives, the range of a group holds 0, and a
channel that no token reaches has s = 1 and no part in max s and min s: with the least s its weights
would be rounded to 0, which other text may use, and its norm weight be divided by that s.

Clip (`rewrite_clip`): then, for each row and group of `W diag(s)`, the bound b among
max|w| (1 - i/20), i = 0 .. 9, of the least `sum ((Q(clamp(w, -b, b)) - w) x')^2` over the group's
own columns, x' = x / s; all tokens count, where 512 do as published.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.linalg import vecdot

from q2n.linalg.groups import in_groups
from q2n.option_types import CountOrZero
from q2n.rewrites.rewrite import Reading, Rewrite

RATIOS = 20
_FROM_THE_MIDDLE = sorted(range(RATIOS), key=lambda ratio: abs(ratio - RATIOS // 2))
"""Good ones first: a bad one is given up at the window at which it has lost more."""
_MODULES = 2
"""The attention and the MLP: not even whole blocks are run for both."""
_LEAST = 1e-4
_CLIP_STEPS, _CLIPS = 20, 10


@dataclass(frozen=True, kw_only=True)
class AWQ(Rewrite):
    """Channels with large activations are rounded more finely (AWQ)."""

    name: ClassVar[str] = "awq"
    searches: ClassVar[bool] = True
    into_linears: ClassVar[bool] = True

    rewrite_windows: CountOrZero = 4
    """Calibration windows on which scales in front of queries, keys and values, and of gate and up,
    are judged by the output of the attention and of the MLP, as published; 0: by the linears' own
    outputs on all windows."""
    rewrite_clip: bool = False
    """Then clamp the weights of each row and group to the bound of the least error of rounding to
    nearest, except those of queries and keys. Published for rtn."""

    @property
    def title(self) -> str:
        return "AWQ scales and clipping" if self.rewrite_clip else "AWQ scales"

    @property
    def judging_windows(self) -> int:
        return self.rewrite_windows

    @property
    def clips(self) -> bool:
        return self.rewrite_clip

    @property
    def work(self) -> float:
        return float(RATIOS)

    @property
    def passes(self) -> int:
        return _MODULES * RATIOS * self.rewrite_windows

    def scale(self, reading: Reading) -> Float[Tensor, " in"]:
        magnitude = reading.inputs.sizes.total / reading.inputs.tokens
        least, best = torch.inf, torch.ones_like(magnitude)
        live = magnitude > 0
        for ratio in _FROM_THE_MIDDLE if live.any() else ():
            scale = magnitude.pow(ratio / RATIOS).clamp(min=_LEAST)
            scale = scale / (scale[live].max() * scale[live].min()).sqrt()
            scale = scale.where(live, 1.0)
            tried = (reading.rounded(weight * scale) / scale for weight in reading.weights)
            loss = reading.loss(tried, least)
            if loss < least:
                least, best = loss, scale
        return best

    def clipped(
        self, reading: Reading, weight: Float[Tensor, "out in"], scale: Float[Tensor, " in"]
    ) -> Float[Tensor, "out in"]:
        if not self.rewrite_clip:
            return weight
        size = reading.group_size
        grams = _blocks(reading.inputs.gram / scale / scale[:, None], size)
        values = in_groups(weight, size)
        largest = values.abs().amax(-1, keepdim=True)
        least = torch.full_like(largest, torch.inf)
        best = largest
        for step in range(_CLIPS):
            bound = largest * (1 - step / _CLIP_STEPS)
            rounded = reading.rounded(_clamped(values, bound, weight.shape[1]))
            error = in_groups(rounded, size) - values
            error = error.transpose(0, 1)
            lost = vecdot(error @ grams, error).T.unsqueeze(-1)
            best = torch.where(lost < least, bound, best)
            least = torch.minimum(lost, least)
        return _clamped(values, best, weight.shape[1])


def _clamped(
    values: Float[Tensor, "out groups size"], bound: Float[Tensor, "out groups 1"], columns: int
) -> Float[Tensor, "out {columns}"]:
    """The weight with every group clamped to +- its bound."""
    return values.clamp(-bound, bound).flatten(1)[:, :columns]


def _blocks(gram: Float[Tensor, "in in"], size: int) -> Float[Tensor, "groups size size"]:
    """The blocks of G on the diagonal; a ragged one is filled up with zeros."""
    wide = in_groups(gram, size).flatten(1)
    square = in_groups(wide.T, size).unflatten(0, (-1, size))  # [groups, size, groups, size]
    return square.diagonal(dim1=0, dim2=2).permute(2, 0, 1)
