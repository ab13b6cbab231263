"""How the block loop runs."""

import math
from dataclasses import dataclass
from zlib import crc32

from q2n.option_types import (
    Count,
    CountOrZero,
    NonNegative,
    Positive,
    Seed,
    Share,
    check_fields,
)
from q2n.pipeline.activations import Place

GIB = 2**30
"""Bytes."""


@dataclass(frozen=True, kw_only=True)
class LoopOptions:
    """How the loop runs; where activations lie and `expert_memory` do not touch the result."""

    true_sequential: bool = True
    """Measure each site after the layers before it are quantized."""
    batch_size: Count = 4
    """Calibration windows in one forward pass."""
    activations: Place = "device"
    """Where block inputs lie: device, cpu or disk."""
    activations_limit: NonNegative | None = None
    """GiB of them that lie there, those of all streams together; the others lie on disk."""
    cross_tokens: CountOrZero = 16
    """Tokens for each input channel that cross moments count, if there are more; 0: all."""
    gradient_tokens: CountOrZero = 65536
    """From which output feedback takes gradients, if there are more: whole windows; 0: all."""
    stream_share: Share = 0.0
    """Of what the residual stream lacks of the full-precision one: the share that layers which
    write to it make up for, as far as their inputs tell of it."""
    expert_shrinkage: NonNegative = 256.0
    """Tokens for which the mean over all tokens counts in the statistics of an expert, beside those
    that its router sends it; 0: the latter alone."""
    all_experts: bool = False
    """Take the statistics of every expert from all tokens alike, routed to it or not."""
    expert_memory: Positive = 1.0
    """GiB for the sums of experts, or of what a rewrite reads, that are measured together."""
    seed: Seed = 0

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def bytes_in_memory(self) -> float:
        """Bytes of block inputs, of all streams together, that may lie on the device or in main
        memory."""
        if self.activations == "disk":
            return 0.0
        return math.inf if self.activations_limit is None else self.activations_limit * GIB

    def seed_of(self, name: str) -> int:
        """The seed of whatever has this full name: its own, whatever else is quantized."""
        return crc32(name.encode()) ^ self.seed

    def gradient_windows(self, windows: int, length: int) -> int:
        """Of the windows of a text, how many gradients are taken of."""
        if not self.gradient_tokens:
            return windows
        return min(windows, math.ceil(self.gradient_tokens / length))

    def cross_stride(self, tokens: int, width: int) -> int:
        """Of the tokens of a text, one in how many counts in the cross moments of a site."""
        return max(1, tokens // (self.cross_tokens * width)) if self.cross_tokens else 1
