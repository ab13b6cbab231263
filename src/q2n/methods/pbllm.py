r"""PB-LLM (Shang et al. 2023): most weights binary, the salient ones at 8 bits.

Saliency of a weight, compared over all rows of a group of columns: *hessian* `w_ij^2 / U_jj^2`,
what setting it to 0 costs with GPTQ's feedback (linalg/factor.py), or *magnitude* `|w_ij|`. The
share `low_fraction` with the least saliency is low: with the entries of a group in ascending order,
all up to the one at index floor(f * count), that one included. Dead columns (input always 0)
take part in no feedback, as in GPTQ; for *hessian* each costs as little as the cheapest other one.

Low weights of a row and group become, from `w~` (the weights, salient ones as **zeros** that stay
in the averages):

- `xnor`: `mu +- a` with `mu = mean(w~)`, `a = mean |w~ - mu|`;
- `sign`: `+- a` with `a = mean |w~|`;
- `2bit`, `4bit`: 4 or 16 equally spaced levels from min to max of `w~`;
- `prune`: 0.

High weights lie on a min-max grid of the full row. Mask and parameters are frozen before the
sweep, which rounds each weight to its own grid with GPTQ's feedback, in the layer's own order.

The released code differs where it seems not to do what was meant: its `sign` gives 0 or a, its
`4bit` 8 levels.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from q2n.grids.granularity import Granularity, granularity_of
from q2n.grids.uniform import UniformGrid, stored_numbers
from q2n.kernels.column_sweep import sweep
from q2n.kernels.rounding_rules import SplitRule
from q2n.layers.partly_binary import PartlyBinaryLinear
from q2n.layers.quantized import StorageSpec
from q2n.linalg.factor import Feedback, compensated
from q2n.linalg.groups import group_of_column, in_groups
from q2n.linalg.required_statistics import RequiredStatistics
from q2n.method import LayerProblem, Method, Work, shared_feedback
from q2n.option_types import Bits, Count, GroupSize, NonNegative, ShareInside

_LOW_BITS = {"xnor": 1, "sign": 1, "2bit": 2, "4bit": 4, "prune": 0}


class Levels(NamedTuple):
    """Low levels: equally spaced from mean - magnitude to mean + magnitude."""

    mean: Float[Tensor, "out groups"] | None
    """None for 0."""
    magnitude: Float[Tensor, "out groups"] | None
    """None where low weights are 0."""


@dataclass(frozen=True, kw_only=True)
class PBLLM(Method):
    """Most weights at 1 bit (or 0, 2, 4), the salient ones at 8, with error feedback."""

    name: ClassVar[str] = "pbllm"
    strategy: ClassVar[str] = "salience"
    bits_offered: ClassVar[str] = "1, 2, 4 and 8 in one layer"

    low_fraction: ShareInside = 0.9
    """Share of the weights with few levels."""
    low: Literal["xnor", "sign", "2bit", "4bit", "prune"] = "xnor"
    """Levels of these: mean +- magnitude, +- magnitude, 4, 16, or 0 alone."""
    high_bits: Bits = 8
    """Bits of the salient weights: 2, 3, 4 or 8."""
    saliency: Literal["hessian", "magnitude"] = "hessian"
    """Which weights are salient: by what setting them to 0 costs, or by their size."""
    group_size: GroupSize = -1
    """Columns among which the salient weights are chosen and that share the low levels; -1: all."""
    feedback: bool = True
    """Make up for the error of each column in the later ones."""
    damping: NonNegative = 0.01
    """Added to the Gram matrix's diagonal, as a share of its mean."""
    block_size: Count = 128
    """Columns between two matrix products. Changes speed and rounding noise alone, and the
    borders at which the compensated weight is taken (every 128 in the released code)."""

    @property
    def required_statistics(self) -> RequiredStatistics:
        used = self.feedback or self.saliency == "hessian"
        return RequiredStatistics.GRAM if used else RequiredStatistics.NONE

    @property
    def work(self) -> Work:
        """With the choice of salient weights."""
        return super().work + Work(weight=4000.0)

    @property
    def storage(self) -> StorageSpec:
        return StorageSpec(kind=PartlyBinaryLinear.kind)

    def check(self, name: str, shape: tuple[int, int]) -> None:
        self._granularity.group_size(shape[1], name)

    def quantize(self, problem: LayerProblem) -> PartlyBinaryLinear:
        back, weight = None, problem.weight
        if self.required_statistics:
            back = shared_feedback(problem, self.damping, descending=False)
        size = self._granularity.group_size(weight.shape[1], problem.name)
        scale, zero = UniformGrid(bits=self.high_bits).fit(
            weight, problem.scale_dtype, problem.name
        )
        low = low_mask(self._saliency(weight, back), self.low_fraction, size)
        levels = self._levels(weight.where(low, 0), size, problem)
        rule = self._rule(low, levels, scale.to(weight.dtype), zero, size)
        codes = self._codes(weight, rule, back).T
        layer = PartlyBinaryLinear(
            low=low,
            low_codes=codes[low] if self.low != "prune" else None,
            high_codes=codes[~low],
            mean=levels.mean,
            magnitude=levels.magnitude,
            scale=scale,
            zero=zero,
            low_bits=_LOW_BITS[self.low],
            high_bits=self.high_bits,
            group_size=size,
        )
        if back is None:
            return layer
        return layer.with_record(**back.record)

    def compensated(
        self, problem: LayerProblem, quantized: Float[Tensor, "out in"]
    ) -> Float[Tensor, "out in"]:
        if not self.feedback:
            return problem.weight
        back = shared_feedback(problem, self.damping, descending=False)
        return compensated(problem.weight, quantized, back, self.block_size)

    @property
    def _granularity(self) -> Granularity:
        return granularity_of(self.group_size)

    def _saliency(
        self, weight: Float[Tensor, "out in"], back: Feedback | None
    ) -> Float[Tensor, "out in"]:
        if self.saliency == "magnitude":
            return weight.abs()
        assert back is not None
        return (weight * back.importance).square()  # 1 / U_jj

    def _levels(self, left: Float[Tensor, "out in"], size: int, problem: LayerProblem) -> Levels:
        """Low levels of each row and group, rounded as they will be stored."""
        if self.low == "prune":
            return Levels(None, None)
        groups = in_groups(left, size)
        if self.low == "sign":
            return Levels(
                None, stored_numbers(groups.abs().mean(-1), problem.scale_dtype, problem.name)
            )
        if self.low == "xnor":
            mean = groups.mean(-1, keepdim=True)
            magnitude = (groups - mean).abs().mean(-1)
            mean = mean.squeeze(-1)
        else:
            grid = UniformGrid(bits=_LOW_BITS[self.low])
            step, zero = grid.fit_groups(groups, left.dtype, problem.name)
            magnitude = step * (grid.top / 2)
            mean = magnitude - step * zero
            some = groups.any(-1)  # a group of zeros has a range all the same
            mean, magnitude = mean.where(some, 0), magnitude.where(some, 0)
        return Levels(
            *(stored_numbers(x, problem.scale_dtype, problem.name) for x in (mean, magnitude))
        )

    def _rule(
        self,
        low: Bool[Tensor, "out in"],
        levels: Levels,
        scale: Float[Tensor, "out 1"],
        zero: Tensor,
        size: int,
    ) -> SplitRule:
        """Both grids as `base + step * code`; `scale` in the dtype of the weight."""
        rows, m = low.shape
        low_top, high_top = 2 ** _LOW_BITS[self.low] - 1, 2**self.high_bits - 1
        if levels.magnitude is None:
            low_base, low_step = scale.new_zeros(2, rows, m // size)
        else:
            half = levels.magnitude.to(scale.dtype)
            low_base = -half if levels.mean is None else levels.mean.to(scale.dtype) - half
            low_step = half * (2 / low_top)
        low_step = low_step.where(low_step > 0, 1)  # a single level: any step will do
        return SplitRule(
            low.T.contiguous(),
            group_of_column(m, size, low.device),
            low_base.T.contiguous(),
            low_step.T.contiguous(),
            low_top,
            (-scale * zero).T.contiguous(),
            scale.T.contiguous(),
            high_top,
        )

    def _codes(
        self, weight: Float[Tensor, "out in"], rule: SplitRule, back: Feedback | None
    ) -> Tensor:
        """Columns as rows."""
        columns = weight.T.contiguous()
        if self.feedback and back is not None:
            return sweep(columns, back.matrix, rule, block_size=self.block_size).codes
        return rule.nearest(columns)[0].to(torch.uint8)


def low_mask(
    saliency: Float[Tensor, "out in"], fraction: float, size: int
) -> Bool[Tensor, "out in"]:
    """The least salient entries of every `size` columns, over all rows."""
    rows, m = saliency.shape
    groups = in_groups(saliency, size).transpose(0, 1)  # [groups, out, size]
    index = int(fraction * rows * size)
    threshold = groups.flatten(1).kthvalue(index + 1, dim=1).values
    return (groups <= threshold.view(-1, 1, 1)).transpose(0, 1).reshape(rows, m)
