"""What a run does to a model: all that a forecast reads of the settings."""

from dataclasses import dataclass

from q2n.grids.learned_range import RangeFit
from q2n.layers.learned_factors import FactorFit
from q2n.linalg.required_statistics import RequiredStatistics, bytes_of_sums
from q2n.method import Work
from q2n.pipeline.measure import OF_BOTH
from q2n.pipeline.options import LoopOptions
from q2n.planning.shapes import Number, SiteShape
from q2n.planning.stored import LayerSizes


@dataclass(frozen=True, kw_only=True)
class Load:
    """One run."""

    windows: int
    """Of calibration text that runs through the blocks; 0 where none does."""
    length: int
    """Tokens of each."""
    evaluated: int
    """Windows on which the result is measured beside the original; 0: it is not."""
    evaluated_length: int
    """Tokens of each of these."""
    divergence: bool
    """Whether the KL divergence is measured too."""
    options: LoopOptions
    required: RequiredStatistics
    work: Work
    rewrite: float | None
    """Products of each layer's size that a rewrite computes; None: there is none."""
    rewrite_passes: int
    """Windows that run through each block for its search."""
    streams: int
    """2 where the full-precision model runs beside the quantized prefix; 0 without text."""
    block_refit: int
    """Gradient steps a block; 0: none."""
    range_fit: RangeFit | None
    """Gradient steps on the ranges of a block before it is rounded."""
    factor_fit: FactorFit | None
    """The same on its factors afterwards."""
    model_refit: int
    """Gradient steps of the whole model; 0: none."""
    rotation_steps: int
    """Gradient steps of a learned rotation; 0: none."""
    gradients: bool = False
    """Whether the method reads gradients at all outputs."""
    trials: "Load | None" = None
    """All trials at one width, where the widths of layers are found."""
    widths: int = 1
    """At how many widths each layer is quantized."""
    sizes: LayerSizes
    kept_bytes: Number
    """What the checkpoint holds besides the quantized layers."""
    on_device: bool
    """Whether the device has a memory of its own."""
    ranks: int = 1
    """Devices. Each holds its share of the windows; Gram matrices are added up; the matrices of a
    site, or its experts, are divided among them."""

    @property
    def streams_at_sites(self) -> int:
        """How many streams stop at the sites for statistics."""
        return self.streams if self.required & OF_BOTH else min(self.streams, 1)

    def writes(self, site: SiteShape, hidden: int) -> int:
        """Rows of a layer that makes up for a share of what the residual stream lacks; else 0."""
        makes_up = self.options.stream_share > 0 and RequiredStatistics.CROSS in self.required
        return site.outputs(hidden) if makes_up else 0

    def sums(self, site: SiteShape, hidden: int) -> int:
        """Bytes of the sums of one copy of a site."""
        return bytes_of_sums(self.required, site.width, self.writes(site, hidden))

    @property
    def block_steps(self) -> int:
        """Gradient steps a block, of all kinds."""
        epochs = sum(x.epochs for x in (self.range_fit, self.factor_fit) if x is not None)
        return self.block_refit + epochs * self.windows

    @property
    def targets(self) -> int:
        """Outputs of a block that are kept for its gradient steps, as large as a stream each."""
        if self.range_fit is None:
            return int(self.factor_fit is not None)
        return 1 + self.range_fit.both_targets

    @property
    def tokens(self) -> int:
        """Of the calibration text."""
        return self.windows * self.length

    @property
    def gradient_windows(self) -> int:
        """Windows that the method's gradients are taken of."""
        return self.options.gradient_windows(self.windows, self.length) if self.gradients else 0

    @property
    def gradient_tokens(self) -> int:
        """Of these windows."""
        return self.gradient_windows * self.length

    @property
    def text(self) -> int:
        """Of the longest text whose block inputs are all on disk; 0 where there is none."""
        trials = 0 if self.trials is None else self.trials.tokens
        return max(trials, self.gradient_tokens)
