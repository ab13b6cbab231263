r"""Activations on a uniform grid that is fitted to each token as it comes (dynamic).

Letters: `b` bits, `c` clip, `s` scale, `z` zero point; a group is the whole last axis, or `size`
neighbours of it.

Symmetric: `s = c max|x| / (2^(b-1) - 1)`, codes `-2^(b-1) .. 2^(b-1) - 1`. Asymmetric:
`lo = c min(0, min x)`, `hi = c max(0, max x)`, `s = (hi - lo) / (2^b - 1)`, `z = round(-lo / s)`.
c < 1 cuts off the few largest values and makes the step finer for the others. The result is
dequantized at once: what is simulated is the rounding, not the integer arithmetic. A group of
zeros stays zero. Source: QuaRot (Ashkboos et al. 2024).

A gradient passes the rounding unchanged (straight through), as rounding itself has none.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from q2n.errors import InputError
from q2n.linalg.groups import in_groups

WIDTHS = range(2, 9)


@dataclass(frozen=True, kw_only=True)
class TokenGrid:
    """How one token's vector is rounded."""

    bits: int = 4
    symmetric: bool = True
    group_size: int = -1
    """Neighbours that share a scale; -1: the whole vector."""
    clip: float = 1.0
    """Share of the range that is kept, in (0, 1]."""

    def __post_init__(self) -> None:
        if self.bits not in WIDTHS:
            raise InputError(f"activations take 2 to 8 bits (16: off), got {self.bits}")
        if self.group_size != -1 and self.group_size < 1:
            raise InputError(f"a group has at least 1 value or is -1, got {self.group_size}")
        if not 0 < self.clip <= 1:
            raise InputError(f"the clip of a range lies in (0, 1], got {self.clip}")

    def check(self, width: int, what: str) -> None:
        """Refuse vectors of a width that the groups do not divide.

        Raises:
            InputError: naming `what` they are.
        """
        if self.group_size != -1 and width % self.group_size:
            raise InputError(
                f"groups of {self.group_size} do not divide the {width} values of {what}; "
                "choose a divisor, or -1 for all of them"
            )

    def quantize(self, x: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch n"]:
        """The nearest values on each token's grid, in the dtype of x; computed in float32."""
        return _StraightThrough.apply(x, self._rounded)

    def _rounded(self, x: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch n"]:
        size = x.shape[-1] if self.group_size == -1 else self.group_size
        groups = in_groups(x.float(), size)
        rounded = self._symmetric(groups) if self.symmetric else self._asymmetric(groups)
        return rounded.flatten(-2).to(x.dtype)

    def _symmetric(self, groups: Tensor) -> Tensor:
        top = 2 ** (self.bits - 1) - 1
        scale = _usable(groups.abs().amax(-1, keepdim=True) * (self.clip / top))
        return (groups / scale).round_().clamp_(-top - 1, top).mul_(scale)

    def _asymmetric(self, groups: Tensor) -> Tensor:
        top = 2**self.bits - 1
        lo = groups.amin(-1, keepdim=True).clamp_(max=0) * self.clip
        hi = groups.amax(-1, keepdim=True).clamp_(min=0) * self.clip
        scale = _usable((hi - lo) / top)
        zero = torch.round(-lo / scale)
        return (groups / scale).round_().add_(zero).clamp_(0, top).sub_(zero).mul_(scale)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rounded: Callable[[Tensor], Tensor]) -> Tensor:
        return rounded(x)

    @staticmethod
    def backward(ctx: Any, above: Tensor) -> Any:
        return above, None


def _usable(scale: Tensor) -> Tensor:
    """1 for a group of zeros: any scale stands for them."""
    return torch.where(scale == 0, torch.ones_like(scale), scale)
