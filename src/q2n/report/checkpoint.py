"""What describes a checkpoint, in its folder: q2n.json, q2n_timings.json and the model card."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from q2n.evaluation.perplexity import PerplexityResult
from q2n.report.card import CardFacts, Perplexity, render_card
from q2n.report.record import RECORD_FILE, TIMINGS_FILE, BlockRecord, RunRecord, timings
from q2n.version import __version__


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
    perplexities: Mapping[str, PerplexityResult]
    """Of "original" and "quantized", if `ppl` was asked for."""


@dataclass(frozen=True, kw_only=True)
class About:
    """What a card says besides measurements."""

    method: str
    """One line: the method and what is around it."""
    format: str
    """As `--format` calls it."""
    tags: tuple[str, ...]
    """Under which model hubs list it."""
    runtime: bool
    """Whether the model runs with parts beside its weights."""


def describe(
    folder: Path,
    about: About,
    fingerprint: Mapping[str, Any],
    labels: Mapping[str, Any],
    blocks: Iterable[BlockRecord],
    *,
    directory: Path,
    bytes_before: int,
    bytes_after: int,
    loading_example: str,
    perplexities: Mapping[str, PerplexityResult],
) -> Quantized:
    """Write record, timings and card into `folder`, which will be called `directory`."""
    blocks = list(blocks)
    measured = {which: _without_time(result) for which, result in perplexities.items()}
    done = Quantized(
        directory=directory,
        record=RunRecord.of(fingerprint, labels, blocks, perplexity=measured).to_json(),
        timings=timings(blocks),
        bytes_before=bytes_before,
        bytes_after=bytes_after,
        loading_example=loading_example,
        perplexities=perplexities,
    )
    (folder / RECORD_FILE).write_text(json.dumps(done.record, indent=1) + "\n")
    (folder / TIMINGS_FILE).write_text(json.dumps(done.timings, indent=1) + "\n")
    (folder / "README.md").write_text(render_card(_card(about, done, str(labels["model"]))))
    return done


def _card(about: About, done: Quantized, base_model: str) -> CardFacts:
    return CardFacts(
        base_model=base_model,
        title=done.directory.name,
        format=about.format,
        tags=list(dict.fromkeys(("quantized", "q2n", *about.tags))),
        loading_example=done.loading_example.replace(str(done.directory), done.directory.name),
        method=about.method,
        runtime=about.runtime,
        settings=done.record["settings"],
        bits_per_weight=done.record["bits_per_weight"],
        bytes_before=done.bytes_before,
        bytes_after=done.bytes_after,
        perplexities=[_measured(which, result) for which, result in done.perplexities.items()],
        version=__version__,
    )


def _measured(which: str, result: PerplexityResult) -> Perplexity:
    return Perplexity(
        model=which,
        corpus=result.label,
        value=result.perplexity,
        standard_error=result.standard_error,
        context=result.length,
        windows=result.windows,
    )


def _without_time(result: PerplexityResult) -> dict[str, Any]:
    return {key: value for key, value in asdict(result).items() if key != "seconds"}
