"""The null-space step (Q2N) as a plug-in: any method, then one factor alpha per row.

The error `W - Q` of a quantized layer is projected on the null space of its input (where
it does no harm) and each row of Q is scaled so as to come closest to W less that
projection. Which directions are the null space: linalg/spectrum.py. Alpha:
linalg/alpha.py. The layer absorbs alpha in what it already stores (`scale_rows`). Columns that
it keeps outside (`fixed_columns`, outliers in 16 bits) count as exact: their error is 0, and Q
stands for the others alone.

The defaults are the paper's. `--nullspace released` (config/presets.py) gives what the authors'
code does for each method, without its mistakes (docs/mathematics.md lists them).
"""

import time
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.linalg import vecdot

from q2n.errors import InputError
from q2n.layers.quantized import QuantizedLinear, without_columns
from q2n.linalg import alpha as solvers
from q2n.linalg import spectrum as rules
from q2n.linalg.output_error import OutputError
from q2n.linalg.required_statistics import RequiredStatistics
from q2n.linalg.spectrum import Decomposition, Index, Spectrum
from q2n.linalg.statistics import InputStatistics
from q2n.method import Compensating, LayerProblem, Work, Wrapper
from q2n.option_types import Count, NonNegative, Patterns, Positive
from q2n.patterns import matches


@dataclass(frozen=True, kw_only=True)
class NullSpace(Wrapper):
    """Any method followed by the null-space step."""

    name: ClassVar[str] = "nullspace"

    threshold: Positive = 0.1
    """The paper's t: energy outside over energy inside the principal directions."""
    ridge: NonNegative = 0.2
    """The paper's lambda, in units of weight squared: holds alpha near 1."""
    relative_ridge: bool = False
    """Take the ridge in units of each row's |q|^2 instead."""
    rule: Literal["ratio", "matrix_rank", "adam_nscl"] = "ratio"
    """How the null space is chosen."""
    index: Index = "paper"
    """Reading of the ratio rule's index."""
    decomposition: Decomposition = "eigh"
    """How principal directions are found: eigh, or svd (slower; the two differ by rounding)."""
    solver: Literal["closed", "adam"] = "closed"
    """How alpha is found: closed (the paper's formula), or adam (gradient steps from 1)."""
    adam_steps: Count = 20
    """Steps of solver adam."""
    adam_rate: Positive = 2e-3
    """Learning rate of solver adam: what a step moves alpha by, at most."""
    gram: Literal["second_moment", "mean_activation"] = "second_moment"
    """Whose eigenvectors: of sum x x^T, or of the mean activation at each position."""
    reference: Literal["original", "compensated"] = "original"
    """The W of the step: the layer's, or as the inner method's error feedback left it."""
    skip_layers: Patterns = ()
    """Patterns (`*down_proj`) of names of layers that are left as they are."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reference == "compensated" and not isinstance(self.inner, Compensating):
            raise InputError(
                "--reference compensated (which --nullspace released sets) works right around a "
                f"method with error feedback, not around {self.inner.name}; use --reference "
                "original"
            )

    @property
    def title(self) -> str:
        return f"{self.inner.title}, then the null-space step Q2N"

    @property
    def required_statistics(self) -> RequiredStatistics:
        positions = (
            RequiredStatistics.POSITIONS
            if self.gram == "mean_activation"
            else RequiredStatistics.NONE
        )
        return self.inner.required_statistics | RequiredStatistics.GRAM | positions

    @property
    def own_work(self) -> Work:
        return Work(layer=2.0, site=5.0)

    def quantize(self, problem: LayerProblem) -> QuantizedLinear:
        if any(matches(pattern, problem.name) for pattern in self.skip_layers):
            layer = self.inner.quantize(problem)
            return layer.with_record(nullspace_note="layer skipped by its name")
        layer = self.inner.quantize(problem)
        start_time = time.perf_counter()
        stepped, record = self._step(problem, layer)
        seconds = time.perf_counter() - start_time
        return stepped.with_record(**record, nullspace_seconds=round(seconds, 6))

    def _step(
        self, problem: LayerProblem, layer: QuantizedLinear
    ) -> tuple[QuantizedLinear, dict[str, Any]]:
        statistics = problem.measured
        spectrum = self._spectrum(statistics, problem.name)
        start = self._start(spectrum.values)
        quantized, fixed = layer.dequantize(), layer.fixed_columns
        scaled = without_columns(quantized, fixed)
        error = without_columns(self._reference(problem, quantized) - quantized, fixed)
        alpha = self._alpha(error, scaled, spectrum.vectors[:, :start])
        stepped = layer.scale_rows(alpha)
        stored = _row_factors(stepped.scaled_part(), scaled)
        before = OutputError.of(problem.weight, quantized, statistics.gram)
        if len(fixed):
            after = OutputError.of(problem.weight, stepped.dequantize(), statistics.gram).relative()
        else:
            after = before.relative(stored)
        record = {
            "kept_rank": start,
            "nullspace_energy": spectrum.tail_energy(start),
            **{f"alpha_{key}": value for key, value in solvers.summary(alpha).items()},
            "output_error_before": before.relative(),
            "output_error": after,
        }
        note = self._note(start, alpha, stored)
        return stepped, record | ({"nullspace_note": note} if note else {})

    def _reference(
        self, problem: LayerProblem, quantized: Float[Tensor, "out in"]
    ) -> Float[Tensor, "out in"]:
        if self.reference == "original":
            return problem.weight
        assert isinstance(self.inner, Compensating)
        return self.inner.compensated(problem, quantized)

    def _spectrum(self, statistics: InputStatistics, name: str) -> Spectrum:
        """One decomposition per input site, shared by its linears."""
        if self.gram == "second_moment":
            return rules.of_site(statistics, self.decomposition, name=name)
        return statistics.once(
            ("position spectrum", self.decomposition),
            lambda: rules.decompose(statistics.position_gram, self.decomposition, name=name),
        )

    def _start(self, values: Float[Tensor, " in"]) -> int:
        if self.rule == "ratio":
            return rules.ratio(values, self.threshold, self.index)
        return rules.matrix_rank(values) if self.rule == "matrix_rank" else rules.adam_nscl(values)

    def _alpha(
        self,
        error: Float[Tensor, "out in"],
        scaled: Float[Tensor, "out in"],
        principal: Float[Tensor, "in principal"],
    ) -> Float[Tensor, " out"]:
        overlap = vecdot(error @ principal, scaled @ principal)
        norm = vecdot(scaled, scaled)
        ridge = self.ridge * (norm if self.relative_ridge else torch.ones_like(norm))
        if self.solver == "closed":
            return solvers.closed_form(overlap, norm, ridge)
        return solvers.adam(overlap, norm, ridge, steps=self.adam_steps, rate=self.adam_rate)

    def _note(self, start: int, alpha: Tensor, stored: Tensor) -> str | None:
        """Why the step changed nothing, if it did not."""
        if start == 0:
            return "no change: no index qualifies, every direction counts as null space"
        if bool((alpha == 1).all()):
            return "no change: alpha is 1 in every row"
        if bool((stored == 1).all()):
            return "no change: alpha is lost when the scales are rounded to their dtype"
        return None


def _row_factors(
    scaled: Float[Tensor, "out in"], quantized: Float[Tensor, "out in"]
) -> Float[Tensor, " out"]:
    """The factor by which each row really grew, after the rounding of the stored scales:
    exact where a row has one scale, the least-squares one where it has several."""
    norm = vecdot(quantized, quantized)
    return torch.where(norm > 0, vecdot(scaled, quantized) / norm, 1.0)
