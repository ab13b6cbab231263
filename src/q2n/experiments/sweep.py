"""All cells of a plan, by any number of processes over one folder.

    RUNS/cells/KEY-ID.json     one record a cell, whole or not there
    RUNS/locks/KEY             held by the process that does the cell; ends with it, however it ends
    RUNS/work/                 checkpoints as long as they are measured

A process goes through the cells: one that has a record is done; one whose lock another process
holds is left to it; any other is done here. The record is looked for again under the lock, so that
no cell is done twice. A cell that another plan has done (the same key), or that stands in records
from elsewhere, is copied under its new labels. A killed process leaves the run in progress to the
next one that comes, which goes on with its finished blocks.

A record of a folder that holds another model since is none: the cell is done again. A plan that is
changed has other records in the same places, and the last one of a place is shown. Where it is
changed back, its first records are marked as taken: they count from then on.
"""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from q2n.disk.failures import reason
from q2n.errors import InputError
from q2n.experiments.cells import Cell
from q2n.experiments.measure import Measurer
from q2n.logging import Reporter
from q2n.report.experiment import LAYOUT, ExperimentRecord, Place
from q2n.report.output import write
from q2n.report.sweeps.runs import in_order

Command = Callable[[Cell], str]
"""The command that does a cell alone."""


@dataclass(frozen=True)
class Outcome:
    """How many cells a process found done, did, copied from other records, and left to others."""

    found: int = 0
    done: int = 0
    copied: int = 0
    elsewhere: int = 0
    refused: int = 0
    """Of those with a record."""


class Runs:
    """The folder of a sweep."""

    def __init__(
        self, folder: Path, known: Sequence[ExperimentRecord] = (), *, to_write: bool = True
    ):
        """
        Args:
            known: records from elsewhere.
            to_write: whether it is written to, for which it is made.

        Raises:
            InputError: it is no folder, or it cannot be made or written to.
        """
        self.folder, self._known = folder, known
        self.cells, self.locks, self.work = (folder / x for x in ("cells", "locks", "work"))
        if to_write:
            self._make()
        elif folder.exists() and not folder.is_dir():
            raise InputError(f"{folder} is no folder: choose another --output")

    def _make(self) -> None:
        folder = self.folder
        try:
            for place in (self.cells, self.locks, self.work):
                place.mkdir(parents=True, exist_ok=True)
        except OSError as cause:
            raise InputError(f"{folder} cannot be made ({reason(cause)})") from cause
        if not all(os.access(place, os.W_OK) for place in (self.cells, self.locks, self.work)):
            raise InputError(f"{folder} cannot be written to: choose another --output")

    def record(self, cell: Cell) -> ExperimentRecord | None:
        """Of a cell, if there is one that can be read, of the model that lies there now."""
        found = self._read(self.cells / cell.file)
        return found if found is not None and _is_of_model(found, cell) else None

    def is_done(self, cell: Cell, retry: bool) -> bool:
        """Whether a cell has a record, with `retry` one with results."""
        record = self.record(cell)
        return record is not None and not (retry and record.refused is not None)

    def same(self, cell: Cell, retry: bool) -> ExperimentRecord | None:
        """Of any plan that did the same, here or elsewhere; one with results if there is one, with
        `retry` only such a one. What was refused elsewhere may not be here."""
        here = map(self._read, sorted(self.cells.glob(f"{cell.key}-*.json")))
        elsewhere = (x for x in self._known if x.key == cell.key and x.refused is None)
        both = (record for record in (*here, *elsewhere) if record is not None)
        read = [record for record in both if _is_of_model(record, cell)]
        found = sorted(read, key=lambda record: record.refused is not None)
        return next((x for x in found if not (retry and x.refused is not None)), None)

    def take(self, cell: Cell) -> None:
        """Let the record of a cell count before those that its plan had in the same place since.
        Raises as `output.write`."""
        record = self.record(cell)
        if record is not None and self._counting.get(record.place, cell.id) != cell.id:
            self.write(cell, replace(record, taken=_now()))

    @cached_property
    def _counting(self) -> dict[Place, str]:
        """The cell whose record counts in each place, as the folder was when this was asked."""
        found = []
        for file in self.cells.glob("*.json"):
            try:
                found.append(self._read(file))
            except InputError:  # of a newer q2n: it is no cell of ours
                continue
        return {x.place: x.cell for x in in_order(x for x in found if x is not None)}

    def write(self, cell: Cell, record: ExperimentRecord) -> None:
        """Keep a record. Raises as `output.write`."""
        write(self.cells / cell.file, json.dumps(record.to_json(), indent=1).encode())

    def lock(self, cell: Cell) -> FileLock:
        """The lock of what is done. Its file stays: to remove it would let two processes hold one
        each of the same name."""
        return FileLock(self.locks / cell.key, timeout=0)

    def _read(self, file: Path) -> ExperimentRecord | None:
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
            _require_not_newer(values, file)
            return ExperimentRecord.from_json(values)
        except InputError:
            raise
        except (FileNotFoundError, RecursionError, ValueError):  # not there, cut short, outdated
            return None


def _is_of_model(record: ExperimentRecord, cell: Cell) -> bool:
    """Whether it may be of the model that the cell names. What a folder holds may have changed; any
    other name is taken to stand for one model."""
    if record.original_sha256 is None or not cell.original.is_folder:
        return True
    return record.original_sha256 == cell.original.sha256()


def _require_not_newer(values: Any, file: Path) -> None:
    """What a newer q2n has written is not written over."""
    layout = values.get("layout") if isinstance(values, dict) else None
    if isinstance(layout, int) and layout > LAYOUT:
        raise InputError(
            f"{file} is a record of a newer q2n (layout {layout}, this one reads {LAYOUT}): update "
            "q2n, or choose another --output"
        )


def sweep(
    cells: Sequence[Cell],
    runs: Runs,
    measurer: Measurer,
    command: Command,
    reporter: Reporter,
    *,
    retry: bool = False,
) -> Outcome:
    """Do the cells that nobody has done or does. With `retry` those again that were refused."""
    outcome = Outcome()
    for number, cell in enumerate(cells, 1):
        title = f"{number}/{len(cells)} {' '.join(str(label) for label in cell.labels.values())}"
        begin = partial(reporter.note, title)
        how = _take(cell, runs, measurer, command(cell), begin, retry)
        record = runs.record(cell)
        if record is not None and record.refused is not None:
            reporter.note(f"{title}: {record.refused}")
            outcome = replace(outcome, refused=outcome.refused + 1)
        outcome = replace(outcome, **{how: getattr(outcome, how) + 1})
    return outcome


def _take(
    cell: Cell,
    runs: Runs,
    measurer: Measurer,
    command: str,
    begin: Callable[[], None],
    retry: bool,
) -> str:
    """Do a cell unless somebody has or does; which of `Outcome` it was."""
    if runs.is_done(cell, retry):
        runs.take(cell)
        return "found"
    lock = runs.lock(cell)
    try:
        lock.acquire()
    except Timeout:
        return "elsewhere"
    try:
        if runs.is_done(cell, retry):  # by whoever held the lock until now
            return "found"
        same = runs.same(cell, retry)
        if same is None:
            begin()
            runs.write(cell, measurer.record(cell, command))
            return "done"
        runs.write(cell, relabelled(same, cell))
        return "copied"
    finally:
        lock.release()


def relabelled(record: ExperimentRecord, cell: Cell) -> ExperimentRecord:
    """What another plan has found, in the place of `cell`."""
    return replace(
        record,
        cell=cell.id,
        plan=cell.plan,
        title=cell.title,
        labels=cell.labels,
        places=cell.places,
        compare=cell.compare,
        taken=_now(),
    )


def _now() -> str:
    """As records have it, but to the microsecond: a cell may be taken right after one was done."""
    return datetime.now(UTC).isoformat(timespec="microseconds")
