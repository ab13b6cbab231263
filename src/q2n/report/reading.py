"""Records that lie on a disk, read with suspicion: anybody may have written or changed them."""

import json
from dataclasses import asdict, dataclass, fields
from math import isfinite
from pathlib import Path
from typing import Any

from q2n.disk.failures import reason
from q2n.disk.folders import partial_folder
from q2n.errors import InputError
from q2n.evaluation.results import Comparison
from q2n.report.block_record import BlockRecord, LayerRecord
from q2n.report.record import RECORD_FILE, RunRecord

_MALFORMED = (LookupError, TypeError, ValueError, AttributeError, RecursionError)


def _read_json(file: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        InputError: the file cannot be read, or holds something else.
    """
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except OSError as cause:
        raise InputError(f"{file} cannot be read ({reason(cause)})") from cause
    except (ValueError, RecursionError) as cause:
        raise InputError(f"{file} is damaged: it is not JSON ({cause})") from cause
    if not isinstance(values, dict):
        raise InputError(f"{file} is damaged: it holds no JSON object")
    return values


def read_record(file: Path) -> RunRecord:
    """The record of a checkpoint, `q2n.json`.

    Raises:
        InputError: the file cannot be read, or is no such record.
    """
    values = _read_json(file)
    try:
        record = RunRecord.from_json(values)
        for layer in record.layers.values():
            _require_numbers(layer)
        for texts in (record.left_in_full_precision, record.ignored, record.notes):
            _require(isinstance(texts, list) and all(isinstance(x, str) for x in texts), "a list")
        _require(isinstance(record.settings, dict), "settings")
        _require(isinstance(record.settings.get("method", ""), str), "method")
        _require_totals(record)
    except _MALFORMED as cause:
        raise InputError(
            f"{file} is damaged, or another version of q2n wrote it ({type(cause).__name__}: "
            f"{first_error(cause)})"
        ) from cause
    return record


def read_timings(file: Path) -> dict[str, Any]:
    """The times of a checkpoint, `q2n_timings.json`.

    Raises:
        InputError: the file cannot be read, or does not say how long the quantization took.
    """
    timings = _read_json(file)
    if not isinstance(timings.get("quantization_seconds"), int | float):
        raise InputError(f"{file} is damaged: it has no quantization_seconds")
    return timings


def first_error(cause: Exception) -> str:
    """pydantic lists every field that is wrong, on several lines each; the first one will do."""
    errors = getattr(cause, "errors", None)
    if errors is None:
        return " ".join(str(cause).split())
    first = errors(include_url=False)[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"


def record_in(folder: Path) -> RunRecord:
    """Of a finished checkpoint, or of a run that is under way or interrupted.

    Raises:
        InputError: neither is there, or it is damaged.
    """
    if (folder / RECORD_FILE).exists():
        return read_record(folder / RECORD_FILE)
    from q2n.pipeline.block_files import RUN_FILE  # torch, which a finished record needs not
    from q2n.pipeline.store import RunStore

    for candidate in (folder, partial_folder(folder)):
        if (candidate / RUN_FILE).exists():
            store = RunStore(candidate)
            blocks = [BlockRecord.from_facts(facts) for facts in store.finished()]
            start = store.started_with()
            return RunRecord.of(
                start.fingerprint, start.labels, blocks, finished_blocks=len(blocks)
            )
    raise InputError(f"{folder} holds neither {RECORD_FILE} nor an interrupted run")


def comparison_of(record: RunRecord) -> Comparison | None:
    """What was measured, without the time that it took.

    Raises:
        LookupError, TypeError, AttributeError: the record holds something else there.
    """
    return Comparison.from_json(record.rest)


@dataclass(frozen=True, kw_only=True)
class _Totals:
    """What else is printed as a number, of a finished checkpoint or of a run under way."""

    bits_per_weight_all: float = 0.0
    full_precision_share: float = 0.0
    bits_per_weight_outside: float = 0.0
    bytes_outside: int = 0
    finished_blocks: int = 0


def _require_totals(record: RunRecord) -> None:
    """Strictly: numbers, not texts of numbers. Of JSON, from which pydantic makes dataclasses."""
    from pydantic import TypeAdapter  # 0.1 s, which help need not wait for

    names = {field.name for field in fields(_Totals)} & record.rest.keys()
    totals = json.dumps({name: record.rest[name] for name in names})
    TypeAdapter(_Totals).validate_json(totals, strict=True)
    if (measured := comparison_of(record)) is not None:
        TypeAdapter(Comparison).validate_json(json.dumps(asdict(measured)), strict=True)


def _require_numbers(layer: LayerRecord) -> None:
    """Shape, bits and whatever tables and figures compute with."""
    _require(all(isinstance(size, int) and size > 0 for size in layer.shape), "a shape")
    _require(isinstance(layer.bits_per_weight, int | float), "bits_per_weight")
    for key, value in layer.notes.items():
        if key.startswith(("output_error", "nullspace_energy", "alpha_", "scales_", "kept_rank")):
            share = key.startswith(("output_error", "nullspace_energy"))
            known = isinstance(value, int | float) and not isinstance(value, bool)
            number = known and isfinite(value) and (value >= 0 or not share)
            _require(number or (share and value is None), key)


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(f"{what} is not one")
