"""How the block loop runs."""

from dataclasses import dataclass
from zlib import crc32

from q2n.errors import InputError
from q2n.pipeline.activations import PLACES


@dataclass(frozen=True, kw_only=True)
class LoopOptions:
    """How the loop runs; `activations` does not touch the result."""

    true_sequential: bool = True
    """Measure each site after the layers before it are quantized."""
    batch_size: int = 4
    """Calibration windows in one forward pass."""
    activations: str = "device"
    """Where block inputs lie: device, cpu or disk."""
    cross_tokens: int = 0
    """Tokens for each input channel that cross moments count, if there are more; 0: all."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise InputError(f"batch_size must be at least 1, got {self.batch_size}")
        if self.cross_tokens < 0:
            raise InputError(f"cross_tokens must be at least 0, got {self.cross_tokens}")
        if self.activations not in PLACES:
            raise InputError(f"activations {self.activations!r}: choose {', '.join(PLACES)}")

    def seed_of(self, name: str) -> int:
        """The seed of whatever has this full name: its own, whatever else is quantized."""
        return crc32(name.encode()) ^ self.seed

    def cross_stride(self, tokens: int, width: int) -> int:
        """Of the tokens of a text, one in how many counts in the cross moments of a site."""
        return max(1, tokens // (self.cross_tokens * width)) if self.cross_tokens else 1
