"""Output scales: any method, then the least-squares factors of its scales.

The null-space step asks which alpha brings a row of Q close to a row of W. Output scales ask which
alpha brings the layer's output close to a target:

- `full_precision`: the output of the full-precision model at this layer, computed from the input
  that the quantized prefix really gives; with a `stream_share` what makes up for that of the
  residual stream's error too;
- `own`: the original layer's output on that same input.

The closed forms, for one factor per row or per stored scale: linalg/output_alpha.py. The layer
absorbs the factors in the scales it already stores (`scale_groups`); its codes stay. What no scale
multiplies (`fixed_columns`, outliers in 16 bits) is taken off the target first.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from q2n.layers.quantized import QuantizedLinear
from q2n.linalg import spectrum as rules
from q2n.linalg.alpha import summary
from q2n.linalg.held_out import alpha_ridge
from q2n.linalg.output_alpha import per_group
from q2n.linalg.required_statistics import RequiredStatistics
from q2n.linalg.statistics import InputStatistics
from q2n.method import LayerProblem, Work, Wrapper
from q2n.option_types import NonNegative, Positive

THRESHOLDS = (0.01, 0.03, 0.1, 0.3)
"""Thresholds tried with scales_held_out."""


@dataclass(frozen=True, kw_only=True)
class OutputScales(Wrapper):
    """Any method followed by scales refitted to the layer's output."""

    name: ClassVar[str] = "output scales"

    target: Literal["full_precision", "own"] = "full_precision"
    """Target of the fit: the full-precision model's output at the same place, or the original
    layer's output on its own input."""
    scales_per: Literal["row", "group"] = "group"
    """One factor per row, or per stored scale."""
    scales_ridge: NonNegative = 0.5
    """Holds the factors near 1; in units of each row's output energy."""
    scales_held_out: bool = False
    """Choose scales_ridge, and scales_threshold where it counts, layer by layer by the error on
    held-out calibration windows; the options are for layers with too little text for that."""
    scales_directions: Literal["all", "principal", "spectral"] = "all"
    """Input directions that count: all; the principal ones of the energy rule; or each by
    v / (v + c), v its energy and c that of the last principal direction."""
    scales_threshold: Positive = 0.1
    """t of the energy rule, for principal and spectral directions."""

    @property
    def title(self) -> str:
        whose = (
            "the full-precision model's" if self.target == "full_precision" else "the layer's own"
        )
        return f"{self.inner.title}, then scales fitted to {whose} output"

    @property
    def required_statistics(self) -> RequiredStatistics:
        cross = (
            RequiredStatistics.CROSS if self.target == "full_precision" else RequiredStatistics.NONE
        )
        folds = RequiredStatistics.FOLDS if self.scales_held_out else RequiredStatistics.NONE
        return self.inner.required_statistics | RequiredStatistics.GRAM | cross | folds

    @property
    def own_work(self) -> Work:
        return Work(layer=3.0)

    def quantize(self, problem: LayerProblem) -> QuantizedLinear:
        layer = self.inner.quantize(problem)
        statistics = problem.measured
        scaled = layer.scaled_part()
        fixed = layer.dequantize() - scaled if len(layer.fixed_columns) else None
        size = layer.scale_group if self.scales_per == "group" else scaled.shape[1]
        threshold, ridge = self._strength(problem, scaled, fixed, size)
        filtered = self.scales_directions != "all"
        gram, goal = self._products(problem, fixed, statistics, threshold if filtered else None)
        alpha = per_group(scaled, gram, goal, ridge, size)
        notes = {f"scales_{key}": x for key, x in summary(alpha).items()} | {"scales_ridge": ridge}
        if filtered:
            notes["scales_threshold"] = threshold
        # an output error that was noted before is no longer true
        before = {key: x for key, x in layer.record.items() if key != "output_error"}
        return replace(layer.scale_groups(alpha), record={**before, **notes})

    def _strength(
        self,
        problem: LayerProblem,
        scaled: Float[Tensor, "out in"],
        fixed: Float[Tensor, "out in"] | None,
        size: int,
    ) -> tuple[float, float]:
        """Threshold and ridge: those of the options, or those with the least held-out error."""
        statistics = problem.measured
        if not (self.scales_held_out and statistics.folds):
            return self.scales_threshold, self.scales_ridge
        whole = [self._products(problem, fixed, fold, None) for fold in statistics.folds]
        if self.scales_directions == "all":
            return self.scales_threshold, alpha_ridge(scaled, whole, whole, size)[0]
        tried: list[tuple[float, float, float]] = []
        for threshold in THRESHOLDS:
            seen = [self._products(problem, fixed, fold, threshold) for fold in statistics.folds]
            ridge, error = alpha_ridge(scaled, whole, seen, size)
            tried.append((error, threshold, ridge))
        return min(tried)[1:]

    def _products(
        self,
        problem: LayerProblem,
        fixed: Float[Tensor, "out in"] | None,
        statistics: InputStatistics,
        threshold: float | None,
    ) -> tuple[Float[Tensor, "in in"], Float[Tensor, "out in"]]:
        """`C` and `w M` of all tokens or of a fold, less what the fixed part gives, `f C`; with a
        threshold both weighed by F."""
        gram = statistics.gram
        full = self.target == "full_precision"
        goal = problem.goal(statistics) if full else problem.weight @ gram
        if fixed is not None:
            goal -= fixed @ gram
        if threshold is None:
            return gram, goal
        root = self._filter(problem, threshold)
        key = ("filtered gram", self.scales_directions, threshold)
        return statistics.once(key, lambda: root @ gram @ root), goal @ root @ root

    def _filter(self, problem: LayerProblem, threshold: float) -> Float[Tensor, "in in"]:
        """F^1/2 of a threshold; one per input site."""
        statistics = problem.measured
        return statistics.once(
            ("filter", self.scales_directions, threshold),
            lambda: self._new_filter(statistics, threshold, problem.name),
        )

    def _new_filter(
        self, statistics: InputStatistics, threshold: float, name: str
    ) -> Float[Tensor, "in in"]:
        spectrum = rules.of_site(statistics, name=name)
        start = rules.ratio(spectrum.values, threshold)
        if self.scales_directions == "principal":
            principal = spectrum.vectors[:, :start]
            return principal @ principal.T
        cut = spectrum.values[max(start - 1, 0)].clamp(min=torch.finfo(torch.float32).tiny)
        root = (spectrum.values / (spectrum.values + cut)).sqrt()
        return (spectrum.vectors * root) @ spectrum.vectors.T
