r"""How long cells will take: roughly, before the first is done; from their like, after.

Before: a pass of T tokens through P weights takes 2 P T operations. A quantization by closed forms
takes about 4 passes of the calibration text through the blocks (two runs of each, the Gram
matrices, the sweeps), `good` 2.5 times and `best` 7 times as many (docs/FINDINGS.md, What it
costs). A text takes a pass, and another one of the original's states through the head. The rate is
that of a matrix product, measured now. That is right within a factor of about three on a CPU.

After: the mean time of the records of the same model whose settings agree the most.
"""

import os
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from q2n.experiments.cells import Cell
from q2n.models.auto_classes import auto_class
from q2n.models.packaged import packaged_checkpoint
from q2n.planning.rates import product_rate
from q2n.report.experiment import ExperimentRecord

PASSES = {None: 4, "good": 10, "best": 28}
"""Over the calibration text, by quality."""


def estimate(cell: Cell, records: Sequence[ExperimentRecord]) -> float | None:
    """Seconds of a cell; None where nobody knows its model here."""
    likes = [record for record in records if _is_like(record, cell)]
    if likes:
        most = max(_agreement(record, cell) for record in likes)
        nearest = [_seconds(record) for record in likes if _agreement(record, cell) == most]
        return sum(nearest) / len(nearest)
    weights = _weights(cell.model)
    if weights is None:
        return None
    blocks, head = weights
    texts = sum(map(_tokens, cell.texts.values()))
    return 2 * (blocks * (_quantizing(cell) + texts) + 2 * head * texts) / _rate()


def _quantizing(cell: Cell) -> int:
    """Tokens of all passes through the blocks. A search takes a quantization a trial, and descent
    about two rounds of trials."""
    if cell.settings is None:
        return 0
    trials = 1 + (2 * sum(len(x) for x in cell.search.over.values()) if cell.search else 0)
    return trials * PASSES[cell.settings.get("quality")] * _tokens(cell.settings)


def _tokens(text: Mapping[str, Any]) -> int:
    """What it has of None, as what it does not say, is not known here."""
    return (text.get("windows") or 128) * (text.get("length") or 2048)


def _is_like(record: ExperimentRecord, cell: Cell) -> bool:
    model = (record.settings or {}).get("model", record.labels.get("model"))
    both_original = record.is_original == (cell.settings is None)
    return record.refused is None and model == cell.model and both_original


def _agreement(record: ExperimentRecord, cell: Cell) -> int:
    settings = record.settings or {}
    return sum(settings.get(name) == value for name, value in (cell.settings or {}).items())


def _seconds(record: ExperimentRecord) -> float:
    return sum(record.seconds.values())


@cache
def _weights(model: str) -> tuple[int, int] | None:
    """Of the blocks and of the head of a model that lies here; nothing is fetched for it."""
    folder = Path(model) if os.path.isdir(model) else packaged_checkpoint(model)
    if folder is None:
        return None
    try:
        with torch.device("meta"):
            config = AutoConfig.from_pretrained(folder)
            built = auto_class(config).from_config(config)
    except (OSError, ValueError):
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
    known = [estimate(cell, records) for cell in cells]
    return {
        "seconds": sum(seconds for seconds in known if seconds is not None),
        "unknown": sum(seconds is None for seconds in known),
    }
