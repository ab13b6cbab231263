r"""How long cells will take: roughly, before the first is done; from their like, after.

Before: a pass of T tokens through P weights takes 2 P T operations. A quantization by closed forms
takes about 4 passes of the calibration text through the blocks (two runs of each, the Gram
matrices, the sweeps), `good` 2.5 times and `best` 11.5 times as many (docs/FINDINGS.md, What it
costs). A text takes a pass, and another one of the original's states through the head. The rate is
that of a matrix product, measured now. That is right within a factor of about three on a CPU.

After: the records of the same model whose settings agree the most say how many seconds an operation
takes here, and what their tasks took, which have no such estimate; the means hold for the cell.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from transformers import AutoConfig

from q2n.config.reading import read_settings
from q2n.errors import InputError
from q2n.experiments.cells import Cell
from q2n.experiments.plan import Search
from q2n.models.auto_classes import auto_class
from q2n.models.packaged import packaged_checkpoint
from q2n.planning.rates import product_rate
from q2n.report.experiment import ExperimentRecord

PASSES = {None: 4, "good": 10, "best": 46}
"""Over the calibration text, by quality."""


@dataclass(frozen=True, kw_only=True)
class _Work:
    """What there is to do in a cell."""

    model: str
    settings: Mapping[str, Any] | None
    """As they are read; None: the original."""
    quantized: int
    """Calibration tokens of all passes through the blocks."""
    measured: int
    """Tokens of all texts."""

    def operations(self, blocks: int, head: int) -> float:
        """With so many weights."""
        return 2.0 * (blocks * (self.quantized + self.measured) + 2 * head * self.measured)

    def agreement(self, other: "_Work") -> int:
        """How many settings are the same."""
        theirs = other.settings or {}
        return sum(theirs.get(name) == value for name, value in (self.settings or {}).items())


class Forecast:
    """What cells will take, as far as the records know their like."""

    def __init__(self, records: Sequence[ExperimentRecord]):
        done = [(x, _done_in(x)) for x in records if x.refused is None]
        self._known = [(work, record.seconds) for record, work in done if work is not None]

    def seconds(self, cell: Cell) -> float | None:
        """Of a cell; None where nobody knows its model here."""
        to_do, weights = _to_do_in(cell), _weights(cell.model)
        likes = self._nearest(to_do)
        if likes:
            blocks, head = weights or (1, 0)
            tasks = fmean(seconds.get("tasks", 0.0) for _, seconds in likes)
            pace = fmean(
                (sum(seconds.values()) - seconds.get("tasks", 0.0))
                / (work.operations(blocks, head) or 1.0)
                for work, seconds in likes
            )
            return pace * to_do.operations(blocks, head) + tasks
        return None if weights is None else to_do.operations(*weights) / _rate()

    def _nearest(self, to_do: _Work) -> list[tuple[_Work, Mapping[str, float]]]:
        """What is like it and agrees with it the most, and the seconds that it took."""
        likes = [
            (to_do.agreement(work), work, seconds)
            for work, seconds in self._known
            if _are_like(work, to_do)
        ]
        most = max((agreement for agreement, _, _ in likes), default=0)
        return [(work, seconds) for agreement, work, seconds in likes if agreement == most]


def _are_like(one: _Work, other: _Work) -> bool:
    """Whether one says something of the other."""
    both_original = (one.settings is None) == (other.settings is None)
    return one.model == other.model and both_original


def _to_do_in(cell: Cell) -> _Work:
    settings = None if cell.settings is None else read_settings(cell.settings).flat()
    return _Work(
        model=cell.model,
        settings=settings,
        quantized=_trials(cell.search) * _passes(settings),
        measured=sum(map(_tokens, cell.texts.values())),
    )


def _done_in(record: ExperimentRecord) -> _Work | None:
    """None where its settings are those of another version."""
    settings, model = None, record.labels.get("model")
    if record.settings is not None:
        values = dict(record.settings)
        model = values.pop("model", model)
        try:
            settings = read_settings(values).flat()
        except InputError:
            return None
    return _Work(
        model=str(model),
        settings=settings,
        quantized=(1 + len(record.tried)) * _passes(settings),
        measured=sum(text.windows * text.length for text in record.texts),
    )


def _passes(settings: Mapping[str, Any] | None) -> int:
    """Tokens of all passes of one quantization through the blocks."""
    return 0 if settings is None else PASSES[settings["quality"]] * _tokens(settings)


def _trials(search: Search | None) -> int:
    """Quantizations of a cell: one, and with a search by descent about two rounds of trials."""
    return 1 + (2 * sum(map(len, search.over.values())) if search else 0)


def _tokens(text: Mapping[str, Any]) -> int:
    """What it has of None, as what it does not say, is not known here."""
    return (text.get("windows") or 128) * (text.get("length") or 2048)


@cache
def _weights(model: str) -> tuple[int, int] | None:
    """Of the blocks and of the head of a model that lies here; nothing is fetched for it."""
    try:
        folder = Path(model) if os.path.isdir(model) else packaged_checkpoint(model)
        if folder is None:
            return None
        with torch.device("meta"):
            config = AutoConfig.from_pretrained(folder)
            built = auto_class(config).from_config(config)
    except (OSError, ValueError):  # InputError is one: a package that is not installed
        return None
    words = built.get_input_embeddings().weight
    total = sum(weight.numel() for weight in {*built.parameters()} - {words})
    return total, words.numel()


@cache
def _rate() -> float:
    """Operations a second of a float32 product."""
    return product_rate(torch.device("cpu"), torch.float32)


def total(cells: Sequence[Cell], records: Sequence[ExperimentRecord]) -> dict[str, Any]:
    """Seconds of all cells together, and how many of them are not in it."""
    forecast = Forecast(records)
    known = [forecast.seconds(cell) for cell in cells]
    return {
        "seconds": sum(seconds for seconds in known if seconds is not None),
        "unknown": sum(seconds is None for seconds in known),
    }
