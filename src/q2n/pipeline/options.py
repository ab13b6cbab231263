"""How the block loop runs."""

from dataclasses import dataclass

from q2n.errors import InputError
from q2n.pipeline.activations import PLACES


@dataclass(frozen=True, kw_only=True)
class LoopOptions:
    """How the loop runs; `activations` does not touch the result."""

    true_sequential: bool = True
    """Measure each site after the linears before it are quantized."""
    batch_size: int = 4
    """Calibration windows in one forward pass."""
    activations: str = "device"
    """Where block inputs lie: device, cpu or disk."""
    cross_stride: int = 1
    """Of a window's tokens one in so many counts in cross moments."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise InputError(f"batch_size must be at least 1, got {self.batch_size}")
        if self.cross_stride < 1:
            raise InputError(f"cross_stride must be at least 1, got {self.cross_stride}")
        if self.activations not in PLACES:
            raise InputError(f"activations {self.activations!r}: choose {', '.join(PLACES)}")
