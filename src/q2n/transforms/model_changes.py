"""What a method wants of the model around its layers: plain values that the run carries out."""

from dataclasses import dataclass
from typing import Literal

from q2n.grids.per_token import TokenGrid


@dataclass(frozen=True, kw_only=True)
class ModelChanges:
    """A rotation of the model, rounded inputs of its linears, a rounded cache."""

    rotation: Literal["hadamard", "random", "none"] = "none"
    """Of the residual stream; the online rotations are Hadamard matrices where there are any."""
    activations: TokenGrid | None = None
    """How the input of every quantized linear is rounded; None: not at all."""
    cache: TokenGrid | None = None
    """How keys and values are rounded, head by head; None: not at all."""
