"""What describes a checkpoint, in its folder: q2n.json, q2n_timings.json and the model card."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from q2n.evaluation.results import Comparison
from q2n.models.full_precision import FullPrecision
from q2n.report.block_record import BlockRecord
from q2n.report.card import About, CardFacts, render_card
from q2n.report.reading import comparison_of, read_record, read_timings
from q2n.report.record import (
    RECORD_FILE,
    TIMINGS_FILE,
    RunRecord,
    timings,
)
from q2n.version import __version__

_PADDING = 0.02
"""Share of a file that rounding to whole words and the like may take."""


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """A finished checkpoint and what it cost."""

    directory: Path
    record: dict[str, Any]
    """What `q2n.json` in the folder holds."""
    timings: dict[str, Any]
    """What `q2n_timings.json` holds."""
    bytes_before: int
    bytes_after: int
    loading_example: str
    """Python lines that load the checkpoint."""
    comparison: Comparison | None
    """With the original, if `ppl` was asked for."""


def describe(
    about: About,
    fingerprint: Mapping[str, Any],
    labels: Mapping[str, Any],
    blocks: Iterable[BlockRecord],
    *,
    directory: Path,
    bytes_before: int,
    bytes_after: int,
    loading_example: Callable[[Path], str],
    comparison: Comparison | None,
    kept: FullPrecision,
    shown: Mapping[str, Any],
    before: Mapping[str, float],
    notes: Sequence[str] = (),
) -> tuple[Quantized, dict[str, str]]:
    """What describes the checkpoint `directory`, and the texts of its files by name: record,
    timings and card. `loading_example` gives the lines that load a folder, `kept` is what is not
    quantized, `shown` the settings that the card lists, `before` the seconds of what came before
    the first block, `notes` what was noted there."""
    blocks = list(blocks)
    done = Quantized(
        directory=directory,
        record=RunRecord.of(
            fingerprint,
            labels,
            blocks,
            notes=notes,
            **over_all_weights(blocks, kept),
            **(comparison.to_json() if comparison is not None else {}),
        ).to_json(),
        timings=timings(blocks, before),
        bytes_before=bytes_before,
        bytes_after=bytes_after,
        loading_example=loading_example(directory),
        comparison=comparison,
    )
    card = _card(about, done, shown, str(labels["model"]), loading_example(Path(directory.name)))
    return done, {
        RECORD_FILE: json.dumps(done.record, indent=1) + "\n",
        TIMINGS_FILE: json.dumps(done.timings, indent=1) + "\n",
        "README.md": render_card(card),
    }


def over_all_weights(blocks: Iterable[BlockRecord], kept: FullPrecision) -> dict[str, float]:
    """Entries of a record: bits per weight over all weights of the checkpoint, the share of them,
    0 to 1, that stays in full precision; bits per weight and bytes of all but the quantized
    linears."""
    layers = [layer for block in blocks for layer in block.layers.values()]
    weights = kept.weights + sum(layer.weights for layer in layers)
    bits = kept.bits + sum(layer.weights * layer.bits_per_weight for layer in layers)
    share = (kept.weights - kept.rounded) / weights
    return {
        "bits_per_weight_all": bits / weights,
        "full_precision_share": share,
        "bits_per_weight_outside": kept.bits / kept.weights,
        "bytes_outside": kept.bits // 8,
    }


def wider_in_file(
    blocks: Iterable[BlockRecord], kept: FullPrecision, size: int, format: str
) -> list[str]:
    """A note where the file has noticeably more bits for the quantized linears than they need: in a
    dense format all of them, in MLX a bias of 16 bits where there is a zero point of few.

    Args:
        kept: everything else.
        size: bytes of all tensors of the file.
    """
    layers = [layer for block in blocks for layer in block.layers.values()]
    weights = sum(layer.weights for layer in layers)
    needed = sum(layer.weights * layer.bits_per_weight for layer in layers)
    stored = 8 * size - kept.bits
    if stored <= (1 + _PADDING) * needed:
        return []
    return [
        f"a quantized weight takes {stored / weights:.3f} bits in the file, where its code and "
        f"scales need {needed / weights:.3f}: {format} holds it no narrower"
    ]


def described_before(
    folder: Path, *, bytes_before: int, bytes_after: int, loading_example: Callable[[Path], str]
) -> Quantized:
    """What an earlier run wrote into `folder`.

    Raises:
        InputError: its record or its timings cannot be read.
    """
    record = read_record(folder / RECORD_FILE)
    return Quantized(
        directory=folder,
        record=record.to_json(),
        timings=read_timings(folder / TIMINGS_FILE),
        bytes_before=bytes_before,
        bytes_after=bytes_after,
        loading_example=loading_example(folder),
        comparison=comparison_of(record),
    )


def _card(
    about: About,
    done: Quantized,
    shown: Mapping[str, Any],
    base_model: str,
    loading_example: str,
) -> CardFacts:
    return CardFacts(
        about=about,
        base_model=base_model,
        title=done.directory.name,
        loading_example=loading_example,
        settings=shown,
        bits_per_weight=done.record["bits_per_weight"],
        bits_per_weight_all=done.record["bits_per_weight_all"],
        full_precision_share=done.record["full_precision_share"],
        bits_per_weight_outside=done.record["bits_per_weight_outside"],
        bytes_outside=done.record["bytes_outside"],
        ignored=len(done.record["ignored"]),
        notes=done.record["notes"],
        bytes_before=done.bytes_before,
        bytes_after=done.bytes_after,
        comparison=done.comparison,
        version=__version__,
    )
