"""The record of one cell of a sweep: what was quantized how, what came of it, and what it took.

A sweep (`experiments/`) writes one such record a cell, as one JSON object; a report is made of
records and of nothing else. So a record says itself what it is to be compared with (`compare`), in
which order its labels stand, and under which versions and on which machine it was made.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any

LAYOUT = 1
"""Of the records that this version writes and reads."""

Label = str | int | float | bool
Place = tuple[str, frozenset[tuple[str, Label]], bool]
"""Plan, labels, and whether it is of the original."""


@dataclass(frozen=True, kw_only=True)
class TextResult:
    """One model on one text. Errors are standard errors from the spread of the windows, None for a
    single window."""

    text: str
    """As the plan calls it."""
    protocol: str
    length: int
    """Tokens of a window."""
    windows: int
    sha256: str
    """Of the token windows: only figures of the same windows are paired."""
    perplexity: float | None
    """None where somebody else's record does not say."""
    perplexity_error: float | None
    divergence: float | None = None
    """Mean KL(original | model), in nats a token; None for the original itself."""
    divergence_error: float | None = None
    same_top: float | None = None
    """Share of the tokens, 0 to 1."""
    same_top_error: float | None = None
    by_window: Sequence[float] = ()
    """Mean divergence of each window."""


@dataclass(frozen=True, kw_only=True)
class TaskScore:
    """One model on one task of lm-evaluation-harness; shares, 0 to 1."""

    task: str
    acc: float | None
    acc_error: float | None
    acc_norm: float | None
    """acc where the task has no acc_norm."""
    acc_norm_error: float | None
    questions: int
    limit: int | None
    """Questions at most; None: all."""
    shots: int | None
    harness: str
    """Version of lm-evaluation-harness."""


@dataclass(frozen=True, kw_only=True)
class KindOfLayer:
    """All linears of one kind (q_proj, ...), block by block; None where a layer has no value."""

    blocks: Sequence[int]
    output_error: Sequence[float | None]
    """|(W - Q) X|^2 / |W X|^2 on the calibration text."""
    output_error_before: Sequence[float | None] = ()
    """The same without the null-space step; empty where no step was taken."""
    alpha: Sequence[float | None] = ()
    """Mean factor of the null-space step over the rows."""
    output_scales: Sequence[float | None] = ()
    """Mean factor fitted to the output."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """What took how long, all layers of the kind together."""


@dataclass(frozen=True, kw_only=True)
class SpectrumRecord:
    """Eigenvalues of the Gram matrix of one input site, and where each rule cuts."""

    layer: str
    """The first of the linears that read this input."""
    kind: str
    block: int
    width: int
    """Number of eigenvalues."""
    places: Sequence[int]
    """Of the values that are kept, from 0: the first ones all, later ones thinned out."""
    values: Sequence[float]
    """Eigenvalues at these places, descending, per token (G / tokens)."""
    cuts: Mapping[str, int]
    """Rule (ratio, matrix_rank, adam_nscl) -> principal directions that it keeps."""


@dataclass(frozen=True, kw_only=True)
class ExperimentRecord:
    """One cell."""

    layout: int = LAYOUT
    cell: str
    """Hash of plan, labels and key: the place of this record."""
    key: str
    """Hash of what was done: records of two plans with one key hold the same results."""
    plan: str
    """Name of the plan."""
    title: str = ""
    """Of the plan, for a heading."""
    labels: Mapping[str, Label]
    """Axis -> what the plan calls this cell's place on it, in the plan's order. The original, which
    is not quantized, has its model alone."""
    places: Mapping[str, int] = field(default_factory=dict)
    """Axis -> the place of the label among the plan's, from 0: the order of rows."""
    compare: Mapping[str, Label] = field(default_factory=dict)
    """Labels of the cell with which this one is compared, where they differ from its own. Empty:
    with none."""
    settings: Mapping[str, Any] | None
    """What `quantize` was given; None: the original."""
    software: Mapping[str, str]
    """Versions by name."""
    machine: Mapping[str, str]
    """Processor, threads, GPU."""
    original_sha256: str | None = None
    """Of the files of the model that was quantized or measured; None of a packaged one, or where
    nobody took it."""
    model_sha256: str | None = None
    """Of what was quantized, as read: of a rotated model, rotated, so that it is another for every
    seed."""
    calibration_sha256: str | None = None
    """Of the token windows."""
    started: str
    """UTC, ISO 8601."""
    taken: str | None = None
    """UTC: when a sweep last took it for a cell of a plan that had been changed, or that another
    plan had done; None: never, so that it counts from when it was started."""
    command: str
    """That makes this cell again."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """What (quantization, texts, tasks) -> how long, of the whole process's clock."""
    peak_bytes: int | None = None
    """Largest resident memory of the process in this cell."""
    bits_per_weight: float | None = None
    """Of the quantized linears, everything stored counted."""
    bits_per_weight_all: float | None = None
    """Of all weights."""
    bytes: int | None = None
    """Of the checkpoint's tensors, embeddings included."""
    tokens_per_second: float | None = None
    """Decoded one by one, batch 1, where a program that runs the checkpoint was timed."""
    texts: Sequence[TextResult] = ()
    tasks: Sequence[TaskScore] = ()
    layers: Mapping[str, KindOfLayer] = field(default_factory=dict)
    """Kind of linear -> its layers."""
    spectra: Sequence[SpectrumRecord] = ()
    tried: Sequence[Mapping[str, Any]] = ()
    """Of a cell with a search: the values and the divergence on the held-out text of each trial, in
    order."""
    chosen: Mapping[str, Any] = field(default_factory=dict)
    """The values that the search found best."""
    notes: Sequence[str] = ()
    refused: str | None = None
    """Why q2n did not do this cell, if it did not: then there are no results."""

    @staticmethod
    def from_json(values: Any) -> "ExperimentRecord":
        """Inverse of `to_json`.

        Raises:
            ValueError: it is no record, or one of another layout; the message says what is wrong
                where.
        """
        layout = values.get("layout") if isinstance(values, dict) else None
        if layout is None:
            raise ValueError("it is no record of a sweep: it names no layout")
        if layout != LAYOUT:
            raise ValueError(f"a record of layout {layout}; this version of q2n reads {LAYOUT}")
        return _validator().validate_python(values)

    def to_json(self) -> dict[str, Any]:
        """All fields, as JSON values."""
        return asdict(self)

    @property
    def place(self) -> Place:
        """Of the records in one place the one that counts last is shown."""
        return self.plan, frozenset(self.labels.items()), self.settings is None

    @property
    def counts_from(self) -> str:
        """When it was made or last taken."""
        return max(self.started, self.taken or "")

    @property
    def is_original(self) -> bool:
        """Whether nothing is quantized in it."""
        return self.settings is None and self.refused is None


@cache
def _validator() -> Any:
    from pydantic import ConfigDict, TypeAdapter, with_config  # 0.1 s, which help need not wait for

    strict = ConfigDict(extra="forbid", allow_inf_nan=False)
    return TypeAdapter(with_config(strict)(ExperimentRecord))
