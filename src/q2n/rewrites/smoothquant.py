"""SmoothQuant (Xiao et al. 2023): outlying channels move from activations into weights.

With `a_j = max |x_j|` over tokens and `w_j = max_i |W_ij|` over the rows of all linears that read
the tensor,

    s_j = a_j^alpha / w_j^(1 - alpha),    at least 1e-5,

so that at alpha 0.5 both have the same range, sqrt(a_j w_j), in every channel; 1 of a channel that
no token reaches, whose norm weight would be divided by 1e-5. For activations in
few bits (`--activation-bits`). As published the scale goes into norms alone.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from q2n.option_types import Range
from q2n.rewrites.rewrite import Reading, Rewrite

_LEAST = 1e-5
"""Of the weights' range and of a scale, as published."""


@dataclass(frozen=True, kw_only=True)
class SmoothQuant(Rewrite):
    """Outlying channels of activations move into the weights (SmoothQuant)."""

    name: ClassVar[str] = "smoothquant"
    searches: ClassVar[bool] = False
    into_linears: ClassVar[bool] = False

    smooth_alpha: Annotated[float, Range(low=0, high=1)] = 0.5
    """How much of the range moves into the weights, 0 to 1. Published runs: 0.5 (OPT, BLOOM), 0.85
    to 0.9 (LLaMA), 0.8 (Mistral, Mixtral)."""

    @property
    def title(self) -> str:
        return f"SmoothQuant (alpha {self.smooth_alpha:g})"

    @property
    def work(self) -> float:
        return 0.0

    def scale(self, reading: Reading) -> Float[Tensor, " in"]:
        inputs = reading.inputs.sizes.largest
        weights = torch.stack([weight.abs().amax(0) for weight in reading.weights]).amax(0)
        moved = inputs**self.smooth_alpha / weights.clamp(min=_LEAST) ** (1 - self.smooth_alpha)
        return moved.clamp(min=_LEAST).where(inputs > 0, 1.0)
