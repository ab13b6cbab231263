"""A uniform grid whose ranges may be learned: what OmniQuant's weight clipping needs of a method.

With `clip` learned the ranges are those that a block's output asks for (grids/learned_range.py),
and the method rounds in them: round to nearest as OmniQuant (Shao et al. 2024), or with error
feedback. Epochs and targets are those of OmniQuant's scripts: 20 epochs, at 2 bits 40 and a second
target. Its learned equivalent transformation (scales and shifts between layers, for rounded
activations) is not here.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal, Self

from q2n.errors import InputError
from q2n.grids.learned_range import RangeFit
from q2n.methods.uniform import UniformMethod
from q2n.option_types import Count, Positive

_RATE = 0.01


@dataclass(frozen=True, kw_only=True)
class LearnedClip(UniformMethod):
    """A method on a uniform grid that can have its ranges learned."""

    clip_epochs: Count | None = None
    """Passes over the calibration windows with clip learned; none: 20, at 2 bits 40."""
    clip_rate: Positive = _RATE
    """Rate of AdamW on the logits of the ranges with clip learned."""
    clip_target: Literal["auto", "full_precision", "both"] = "auto"
    """What learned ranges bring the output of a block near: full_precision, what the full-precision
    model has there; both, besides it what the full-precision block makes of the quantized model's
    input; auto, both at 2 bits."""

    def __post_init__(self) -> None:
        super().__post_init__()
        chosen = (self.clip_epochs, self.clip_rate, self.clip_target)
        if self.clip != "learned" and chosen != (None, _RATE, "auto"):
            raise InputError(
                "clip_epochs, clip_rate and clip_target do nothing without --clip learned: add it, "
                "or leave them out"
            )
        if self.clip == "learned" and self.grid != "uniform":
            raise InputError(f"a grid {self.grid} has no range to learn: use --grid uniform")

    @property
    def in_whole_range(self) -> Self:
        """The same method with clip minmax."""
        usual: dict[str, Any] = {"clip_epochs": None, "clip_rate": _RATE, "clip_target": "auto"}
        return replace(self, clip="minmax", **usual)

    @property
    def title(self) -> str:
        return f"{self.name} in learned ranges" if self.clip == "learned" else super().title

    @property
    def range_fit(self) -> RangeFit | None:
        if self.clip != "learned":
            return None
        two_bits = self.bits == 2
        return RangeFit(
            grid=self.fitted_grid,
            epochs=self.clip_epochs or (40 if two_bits else 20),
            rate=self.clip_rate,
            both_targets=self.clip_target == "both" or (self.clip_target == "auto" and two_bits),
        )
