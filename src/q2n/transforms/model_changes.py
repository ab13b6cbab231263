"""What a run changes in the model around its layers, whatever method quantizes them.

A rotation leaves the function as it is and spreads outlying channels over all of them
(transforms/decoder.py); the inputs of the quantized linears and the cache may be rounded to few
bits, which weights alone cannot hold: such a checkpoint has runtime parts (transforms/runtime.py).
"""

from dataclasses import dataclass
from typing import Final, Literal

from q2n.errors import InputError
from q2n.grids.per_token import TokenGrid
from q2n.option_types import Count, GroupSize, Positive, ShareAboveZero, check_fields

TokenBits = Literal[2, 3, 4, 5, 6, 7, 8, 16]
OFF: Final = 16
"""A width that means: not rounded."""


@dataclass(frozen=True, kw_only=True)
class ModelChanges:
    """A rotation of the model, rounded inputs of its linears, a rounded cache."""

    rotate: Literal["none", "hadamard", "random", "learned"] = "none"
    """Rotate the residual stream, heads and gated products (QuaRot): hadamard, with random signs;
    random, the residual stream by any orthogonal matrix; learned, from hadamard by gradient steps
    on the loss of the rounded model (SpinQuant)."""
    rotate_online: bool = True
    """Also rotate the inputs of o and down while the model runs (QuaRot). Off: only what weights
    can hold is rotated, the residual stream and each head's values, and every format and runtime
    takes the checkpoint."""
    rotate_steps: Count = 100
    """Gradient steps of a learned rotation."""
    rotate_windows: Count = 4
    """Calibration windows of each step, whose losses are averaged."""
    rotate_rate: Positive = 0.3
    """Length of the first step of a learned rotation, at most; it falls to 0 along a cosine."""
    rotate_loss: Literal["divergence", "cross_entropy"] = "divergence"
    """What a learned rotation lowers: the KL divergence from the full-precision model, or
    cross_entropy of the token that comes (published, at rate 1.5)."""
    rotate_weight_bits: TokenBits = OFF
    """Bits to which weights are rounded while a rotation is learned, rows to the nearest; 16: not
    rounded, best before a method with error feedback."""
    activation_bits: TokenBits = OFF
    """Bits of the inputs of the quantized linears, 2 to 8; 16: not rounded."""
    activation_symmetric: bool = True
    """Zero in the middle of each token's range."""
    activation_group_size: GroupSize = -1
    """Channels of a token that share a scale; -1: all."""
    activation_clip_ratio: ShareAboveZero = 0.9
    """Share of a token's range that is represented."""
    kv_bits: TokenBits = OFF
    """Bits of keys and values, 2 to 8, with a zero point; 16: not rounded."""
    kv_group_size: GroupSize = -1
    """Channels of a head that share a scale; -1: all."""
    kv_clip_ratio: ShareAboveZero = 0.95
    """Share of the range of keys and values that is represented."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.rotate == "learned" and not (
            self.activations or self.cache or self.learned_weights
        ):
            raise InputError(
                "--rotate learned learns from what rounding loses, and nothing is rounded: give "
                "--activation-bits, --kv-bits or --rotate-weight-bits, or take --rotate hadamard"
            )

    @property
    def none(self) -> bool:
        """Whether the model stays as it is."""
        return self.rotate == "none" and self.activations is None and self.cache is None

    @property
    def beside(self) -> str:
        """The flag of what has to run beside the weights, empty if nothing has to: rounded inputs
        of linears, which more readers know, are no such part."""
        if self.rotate != "none" and self.rotate_online:
            return f"--rotate {self.rotate} without --rotate-online false"
        return "" if self.cache is None else f"--kv-bits {self.kv_bits}"

    @property
    def activations(self) -> TokenGrid | None:
        """How the input of every quantized linear is rounded; None: not at all."""
        if self.activation_bits == OFF:
            return None
        return TokenGrid(
            bits=self.activation_bits,
            symmetric=self.activation_symmetric,
            group_size=self.activation_group_size,
            clip=self.activation_clip_ratio,
        )

    @property
    def cache(self) -> TokenGrid | None:
        """How keys and values are rounded, head by head; None: not at all."""
        if self.kv_bits == OFF:
            return None
        return TokenGrid(
            bits=self.kv_bits,
            symmetric=False,
            group_size=self.kv_group_size,
            clip=self.kv_clip_ratio,
        )

    @property
    def learned_weights(self) -> TokenGrid | None:
        """How the rows of weights are rounded while a rotation is learned; None: not at all."""
        if self.rotate_weight_bits == OFF:
            return None
        return TokenGrid(bits=self.rotate_weight_bits)

    @property
    def title(self) -> str:
        """In words, for a model card; empty where nothing changes."""
        where = "" if self.rotate_online else ", weights alone"
        parts = [f"rotated ({self.rotate}{where})"] if self.rotate != "none" else []
        parts += [f"activations in {self.activation_bits} bits"] if self.activations else []
        parts += [f"keys and values in {self.kv_bits} bits"] if self.cache else []
        return ", ".join(parts)
