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
    """Sum of |x|."""
    largest: Float[Tensor, " in"]
    """max |x|."""

    @classmethod
    def none(cls, width: int, device: torch.device) -> Self:
        """Of no token."""
        zeros = torch.zeros(width, device=device)
        return cls(zeros, zeros)

    @classmethod
    def of(cls, x: Float[Tensor, "*batch in"]) -> Self:
        """Of the tokens x, in float32."""
        sizes = x.detach().float().abs().reshape(-1, x.shape[-1])
        return cls(sizes.sum(0), sizes.amax(0)) if len(sizes) else cls.none(x.shape[-1], x.device)

    def __add__(self, other: "ChannelSizes") -> "ChannelSizes":
        return ChannelSizes(
            self.total + other.total.to(self.total.device),
            torch.maximum(self.largest, other.largest.to(self.largest.device)),
        )
