"""The step that sees the output: any method, then the least-squares factors of its scales.

Where the null-space step of the paper asks what alpha brings a row of Q close to a row of W,
this asks what alpha brings the layer's output close to a target:

- `cross`: the output that the full-precision model has there, from the input that the
  quantized prefix really gives;
- `output`: the original layer's output on that same input.

The closed forms, for one factor a row or one a stored scale: linalg/output_alpha.py. The layer
absorbs the factors in the scales it already stores (`scale_groups`); its codes stay. What no scale
multiplies (`fixed_columns`, outliers in 16 bits) is taken off the target first.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch
from jaxtyping import Float
from torch import Tensor

from q2n.errors import InputError
from q2n.layers.quantized import QuantizedLinear
from q2n.linalg import spectrum as rules
from q2n.linalg.alpha import alpha_summary
from q2n.linalg.held_out import alpha_ridge
from q2n.linalg.output_alpha import per_group
from q2n.linalg.spectrum import Spectrum
from q2n.linalg.statistics import InputStatistics, RequiredStatistics
from q2n.method import LayerProblem, Method, Wrapper

THRESHOLDS = (0.01, 0.03, 0.1, 0.3)
"""Thresholds that are tried where they choose themselves."""


@dataclass(frozen=True, kw_only=True)
class OutputScales(Wrapper):
    """Any method followed by scales refitted to the layer's output."""

    name: ClassVar[str] = "output step"

    objective: Literal["output", "cross"] = "cross"
    """Target of the fit: the original layer's output on its own input, or the full-precision
    model's output at the same place."""
    per: Literal["row", "group"] = "group"
    """One factor a row, or one a stored scale."""
    ridge: float = 0.5
    """Holds the factors near 1; in units of each row's output energy."""
    held_out: bool = False
    """Choose the ridges, and the threshold of principal or spectral directions, layer by layer by
    the error on held-out calibration windows; `ridge` and `threshold` are for layers with too
    little text for that."""
    directions: Literal["all", "principal", "spectral"] = "all"
    """Input directions that count: all; the principal ones of the energy rule; or each by
    v / (v + c), v its energy and c that of the last principal direction."""
    threshold: float = 0.1
    """t of the energy rule, for principal and spectral directions."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.ridge) and self.ridge >= 0):
            raise InputError(f"ridge must be finite and at least 0, got {self.ridge}")
        if not self.threshold > 0:
            raise InputError(f"threshold must be above 0, got {self.threshold}")

    @classmethod
    def output(cls, inner: Method, **options: Any) -> Self:
        """Toward the layer's own output; `options` override the defaults."""
        return cls(inner=inner, **({"objective": "output"} | options))

    @classmethod
    def cross(cls, inner: Method, **options: Any) -> Self:
        """Toward the full-precision output; `options` override the defaults."""
        return cls(inner=inner, **({"objective": "cross"} | options))

    @classmethod
    def auto(cls, inner: Method, **options: Any) -> Self:
        """As `cross`, with ridges chosen on held-out windows; `options` override that."""
        return cls.cross(inner, **({"held_out": True} | options))

    @property
    def title(self) -> str:
        whose = "the full-precision model's" if self.objective == "cross" else "the layer's own"
        return f"{self.inner.title}, then scales fitted to {whose} output"

    @property
    def required_statistics(self) -> RequiredStatistics:
        cross = RequiredStatistics.CROSS if self.objective == "cross" else RequiredStatistics.NONE
        folds = RequiredStatistics.FOLDS if self.held_out else RequiredStatistics.NONE
        return self.inner.required_statistics | RequiredStatistics.GRAM | cross | folds

    def quantize(self, problem: LayerProblem) -> QuantizedLinear:
        layer = self.inner.quantize(problem)
        statistics = problem.statistics
        assert statistics is not None
        statistics.require_finite(problem.name)
        scaled = layer.scaled_part()
        fixed = layer.dequantize() - scaled if len(layer.fixed_columns) else None
        size = layer.scale_group if self.per == "group" else scaled.shape[1]
        threshold, ridge = self._strength(problem, scaled, fixed, size)
        filtered = self.directions != "all"
        gram, goal = self._products(problem, fixed, statistics, threshold if filtered else None)
        alpha = per_group(scaled, gram, goal, ridge, size)
        found = alpha_summary(alpha) | {"alpha_ridge": ridge}
        if filtered:
            found["alpha_threshold"] = threshold
        return layer.scale_groups(alpha).with_record(**found)

    def _strength(
        self,
        problem: LayerProblem,
        scaled: Float[Tensor, "out in"],
        fixed: Float[Tensor, "out in"] | None,
        size: int,
    ) -> tuple[float, float]:
        """Threshold and ridge: those of the options, or those with the least held-out error."""
        statistics = problem.statistics
        assert statistics is not None
        if not (self.held_out and statistics.folds):
            return self.threshold, self.ridge
        whole = [self._products(problem, fixed, fold, None) for fold in statistics.folds]
        if self.directions == "all":
            return self.threshold, alpha_ridge(scaled, whole, whole, size)[0]
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
        goal = problem.weight @ (statistics.cross if self.objective == "cross" else gram)
        if fixed is not None:
            goal -= fixed @ gram
        if threshold is None:
            return gram, goal
        root = self._filter(problem, threshold)
        key = ("filtered gram", self.directions, threshold)
        return statistics.once(key, lambda: root @ gram @ root), goal @ root @ root

    def _filter(self, problem: LayerProblem, threshold: float) -> Float[Tensor, "in in"]:
        """F^1/2 of a threshold; one an input site."""
        statistics = problem.statistics
        assert statistics is not None
        return statistics.once(
            ("filter", self.directions, threshold),
            lambda: self._new_filter(statistics, threshold, problem.name),
        )

    def _new_filter(
        self, statistics: InputStatistics, threshold: float, name: str
    ) -> Float[Tensor, "in in"]:
        found: Spectrum = statistics.once(
            ("spectrum", "second_moment", "eigh"),
            lambda: rules.decompose(statistics.gram, "eigh", name=name),
        )
        start = rules.ratio(found.values, threshold)
        if self.directions == "principal":
            kept = found.vectors[:, :start]
            return kept @ kept.T
        cut = found.values[max(start - 1, 0)].clamp(min=torch.finfo(torch.float32).tiny)
        root = (found.values / (found.values + cut)).sqrt()
        return (found.vectors * root) @ found.vectors.T
