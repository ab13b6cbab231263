"""Records of cells, from wherever they lie: a sweep's folder, a folder of files, a file.

    sweep/cells/*.json     one record each
    folder/*.json, *.jsonl
    file.json, file.jsonl  one record, and one a line

What is no record is left out and named, for the records of a sweep that goes on, or of several
versions of q2n, are still worth a report. Of a cell that was done twice the record counts that was
made last, or taken last by a sweep.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from q2n.disk.failures import reason
from q2n.errors import InputError
from q2n.report.experiment import ExperimentRecord
from q2n.report.reading import first_error
from q2n.report.sweeps.soundness import require_sound

ENDINGS = (".json", ".jsonl")


@dataclass(frozen=True)
class Skipped:
    """What is no record that could be read, and why."""

    place: str
    """File, or file:line."""
    why: str


@dataclass(frozen=True)
class Runs:
    """What was found."""

    records: Sequence[ExperimentRecord]
    """In the order in which they were started or taken, each cell once."""
    skipped: Sequence[Skipped]


def read_runs(places: Iterable[Path]) -> Runs:
    """All records of the places.

    Raises:
        InputError: a place is not there or cannot be read, or there is no record in any.
    """
    places = list(places)
    found: list[ExperimentRecord] = []
    skipped: list[Skipped] = []
    for file in dict.fromkeys(file for place in places for file in _files(place)):
        for each in _read(file):
            (skipped if isinstance(each, Skipped) else found).append(each)  # type: ignore[arg-type]
    if not found:
        raise InputError(_nothing(places, skipped))
    return Runs(_each_cell_once(found), skipped)


def _files(place: Path) -> list[Path]:
    if not place.exists():
        raise InputError(f"{place} is not there: give a sweep's folder, or .json or .jsonl files")
    if not place.is_dir():
        return [place]
    folder = place / "cells" if (place / "cells").is_dir() else place
    return sorted(x for x in folder.iterdir() if x.suffix in ENDINGS and x.is_file())


def _read(file: Path) -> Iterator[ExperimentRecord | Skipped]:
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as cause:
        raise InputError(f"{file} cannot be read ({reason(cause)})") from cause
    except ValueError:
        yield Skipped(str(file), "it is no text in UTF-8")
        return
    if file.suffix == ".jsonl":
        yield from _lines(file, text)
    else:
        yield _record(str(file), text)


def _lines(file: Path, text: str) -> Iterator[ExperimentRecord | Skipped]:
    """One record a line; lines without a layout, which other programs wrote, are said once."""
    others = 0
    for number, line in enumerate(text.split("\n"), 1):  # a string of JSON may hold other breaks
        if not line.strip():
            continue
        values = _parsed(line)
        if isinstance(values, dict) and "layout" not in values:
            others += 1
        else:
            yield _record(f"{file}:{number}", line)
    if others:
        yield Skipped(str(file), f"{others} lines are no records: they name no layout")


def _parsed(text: str) -> Any:
    """JSON values; ValueError says what is wrong with the text."""
    try:
        return json.loads(text)
    except RecursionError:
        return ValueError("brackets without end")
    except ValueError as cause:
        return cause


def _record(place: str, text: str) -> ExperimentRecord | Skipped:
    values = _parsed(text)
    if isinstance(values, ValueError):
        return Skipped(place, f"it is not JSON, or truncated ({values})")
    try:
        record = ExperimentRecord.from_json(values)
        require_sound(record)
        return record
    except (ValueError, RecursionError) as cause:
        return Skipped(place, first_error(cause))


def _each_cell_once(records: Iterable[ExperimentRecord]) -> list[ExperimentRecord]:
    last: dict[str, ExperimentRecord] = {}
    for record in in_order(records):
        last.pop(record.cell, None)  # it stands where the last one does
        last[record.cell] = record
    return list(last.values())


def in_order(records: Iterable[ExperimentRecord]) -> list[ExperimentRecord]:
    """As they count, the last one last."""
    return sorted(records, key=lambda record: (record.counts_from, record.cell))


def _nothing(places: Sequence[Path], skipped: Sequence[Skipped]) -> str:
    where = ", ".join(map(str, places))
    if not skipped:
        return f"no records in {where}: a sweep's folder holds them in cells/"
    first = skipped[0]
    more = f", and {len(skipped) - 1} more like it" if len(skipped) > 1 else ""
    return f"no record in {where} can be read: {first.place}: {first.why}{more}"
