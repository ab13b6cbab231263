"""What came out of the tasks, as JSON values.

**The mean.** acc takes the choice of the highest log-likelihood, acc_norm that of the highest
log-likelihood a byte. Papers on quantization print the mean of the seven tasks and do not say of
which of the two, so both are given. winogrande, mmlu and race have no acc_norm: their acc stands
for it. The standard error of a mean of n tasks is sqrt(sum of their squares) / n.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """One task or group of tasks; every field is a JSON value."""

    task: str
    """As the harness calls it."""
    scores: Mapping[str, float]
    """Metric -> value; a metric behind a filter of the harness as "exact_match,strict-match"."""
    standard_errors: Mapping[str, float | None]
    """Of the same metrics, as the harness gives them."""
    documents: int
    """Questions."""
    limit: int | None
    """Questions of a task (of each subject of a group) at most."""
    shots: int | None
    """Examples in a prompt; None where the tasks of a group differ."""
    version: str | None
    """Of the task's configuration."""
    harness: str
    """Version of lm-evaluation-harness."""
    prompts_sha256: str
    """Of all prompts and answers, in order: the same from the hub and from local files."""
    data: str
    """"hub", or "files"."""
    seconds: float

    @property
    def acc(self) -> float | None:
        return self.scores.get("acc")

    @property
    def acc_norm(self) -> float | None:
        """acc where the task has no acc_norm."""
        return self.scores.get("acc_norm", self.acc)

    def error_of(self, metric: str) -> float | None:
        """Standard error of `acc` or `acc_norm`, the latter as the property."""
        return self.standard_errors.get(metric if metric in self.scores else "acc")

    def to_json(self) -> dict[str, Any]:
        """All fields."""
        errors = dict(self.standard_errors)
        return {**vars(self), "scores": dict(self.scores), "standard_errors": errors}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Inverse of `to_json`."""
        return cls(**values)


@dataclass(frozen=True, kw_only=True)
class Mean:
    """Of several tasks."""

    value: float
    standard_error: float | None


@dataclass(frozen=True)
class TaskResults:
    """All tasks that were asked for, in order."""

    tasks: tuple[TaskResult, ...]

    def mean(self, metric: str) -> Mean | None:
        """Plain mean of "acc" or "acc_norm" over the tasks; None where one has neither."""
        values = [getattr(result, metric) for result in self.tasks]
        errors = [result.error_of(metric) for result in self.tasks]
        if not values or None in values:
            return None
        known = [error for error in errors if error is not None]
        spread = math.hypot(*known) / len(values) if len(known) == len(values) else None
        return Mean(value=sum(values) / len(values), standard_error=spread)

    def to_json(self) -> dict[str, Any]:
        """Tasks and means."""
        means = {metric: self.mean(metric) for metric in ("acc", "acc_norm")}
        return {
            "tasks": [result.to_json() for result in self.tasks],
            **{f"mean_{metric}": mean and vars(mean) for metric, mean in means.items()},
        }
