"""How large the entries of each input channel are: what a choice of salient columns goes by."""

from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, eq=False)
class ChannelSizes:
    """Of some tokens; those of two parts of a text add up."""

    total: Float[Tensor, " in"]
    """Sum of |x|; in float64 while tokens are added, so that no batch changes it."""
    largest: Float[Tensor, " in"]
    """max |x|."""

    @classmethod
    def none(cls, width: int, device: torch.device) -> Self:
        """Of no token."""
        return cls(
            torch.zeros(width, dtype=torch.float64, device=device),
            torch.zeros(width, device=device),
        )

    @classmethod
    def of(cls, x: Float[Tensor, "*batch in"]) -> Self:
        """Of the tokens x."""
        sizes = x.detach().float().abs().reshape(-1, x.shape[-1])
        if not len(sizes):
            return cls.none(x.shape[-1], x.device)
        return cls(sizes.sum(0, dtype=torch.float64), sizes.amax(0))

    def rounded(self) -> "ChannelSizes":
        """In float32, to be read."""
        return ChannelSizes(self.total.float(), self.largest)

    def __add__(self, other: "ChannelSizes") -> "ChannelSizes":
        return ChannelSizes(
            self.total + other.total.to(self.total.device),
            torch.maximum(self.largest, other.largest.to(self.largest.device)),
        )
