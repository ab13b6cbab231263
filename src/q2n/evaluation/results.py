"""What is measured of a model, as plain values: of JSON, without a tensor, so that a record is read
without torch."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self


@dataclass(frozen=True, kw_only=True)
class PerplexityResult:
    """One measurement; every field is a JSON value."""

    perplexity: float
    loss: float
    """Mean cross entropy in nats a token."""
    standard_error: float | None
    """Of the perplexity, from the spread of the windows; None for a single window."""
    windows: int
    tokens: int
    """Predicted tokens."""
    length: int
    """Tokens in a window: the longest context and one."""
    stride: int | None
    protocol: str
    """How the text was cut and what of it counts; figures of two protocols are not comparable."""
    label: str
    """The text."""
    sha256: str
    """Of the token windows."""
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """The tokens about which the reference is equally sure."""

    low: float
    high: float
    """Bounds of the reference's highest probability."""
    share: float
    """Of all tokens."""
    divergence: float | None
    """Mean in nats; None where there are no tokens."""
    median: float | None
    same_top: float | None


@dataclass(frozen=True, kw_only=True)
class Fidelity:
    """A model beside its reference on one text; every field is a JSON value.

    Errors are standard errors from the spread of the windows, None for a single window.
    """

    reference: str
    """What the reference is called."""
    divergence: float
    """Mean of KL(p_ref | p), in nats a token."""
    divergence_error: float | None
    median: float
    percentile_90: float
    percentile_99: float
    percentile_999: float
    """99.9 % of the tokens diverge less."""
    maximum: float
    same_top: float
    """Share of the tokens for which both models find the same token the most probable."""
    same_top_error: float | None
    probability_change: float
    """Root mean square of p - p_ref of the token that comes."""
    probability_change_error: float | None
    log_ratio: float
    """Log of perplexity over reference perplexity."""
    log_ratio_error: float | None
    buckets: tuple[Bucket, ...]
    by_window: tuple[float, ...]
    """Mean divergence of each window, for paired comparisons."""
    protocol: str
    """How the text was cut and what of it counts."""
    sha256: str
    """Of the token windows."""

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """From what `dataclasses.asdict` gives.

        Raises:
            TypeError, KeyError: it is something else.
        """
        buckets = tuple(Bucket(**bucket) for bucket in values["buckets"])
        numbers = {name: values[name] for name in (field.name for field in fields(cls))}
        return cls(**{**numbers, "buckets": buckets, "by_window": tuple(values["by_window"])})


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A model and its reference on one text."""

    model: PerplexityResult
    reference: PerplexityResult
    fidelity: Fidelity | None
    """None where only perplexities were asked for."""
    floor: Fidelity | None = None
    """The reference beside itself with noise, if that was asked for."""

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self | None:
        """Inverse of `to_json`, without the time that was taken; None where nothing was measured.

        Raises:
            TypeError, KeyError, AttributeError: it is something else.
        """
        if not (measured := values.get("perplexity")):
            return None
        fidelity = values.get("fidelity")
        return cls(
            model=PerplexityResult(**measured["quantized"], seconds=0.0),
            reference=PerplexityResult(**measured["original"], seconds=0.0),
            fidelity=None if fidelity is None else Fidelity.from_json(fidelity),
        )

    def to_json(self) -> dict[str, Any]:
        """Entries of the record of a quantized model, without the time that was taken."""
        measured = {"original": asdict(self.reference), "quantized": asdict(self.model)}
        for result in measured.values():
            del result["seconds"]
        fidelity = {} if self.fidelity is None else {"fidelity": asdict(self.fidelity)}
        return {"perplexity": measured, **fidelity}
