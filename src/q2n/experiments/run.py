"""A plan by name, done in a folder: what `q2n sweep` and Python programs call."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from q2n.errors import InputError
from q2n.evaluation.tasks.evaluate_tasks import named_tasks
from q2n.experiments.cells import Cell, cells_of
from q2n.experiments.estimate import total
from q2n.experiments.measure import Measurer
from q2n.experiments.plan_file import read_plan
from q2n.experiments.sweep import Outcome, Runs, sweep
from q2n.logging import Reporter
from q2n.report.experiment import ExperimentRecord
from q2n.report.sweeps.runs import read_runs


@dataclass(frozen=True, kw_only=True)
class Request:
    """Which cells of which plan.

    Raises:
        InputError: a part that is none, or a data_dir that is no folder.
    """

    plan: str
    """File or recipe."""
    scale: str | None = None
    """One of the plan's scales."""
    only: Mapping[str, Sequence[str]] | None = None
    """Axis -> labels of which cells must have one, as texts."""
    part: tuple[int, int] | None = None
    """(k, n): every n-th cell from the k-th on, from 1: for array jobs."""
    data_dir: str | None = None
    """Folder of texts and of files for tasks; None: from the hub."""

    def __post_init__(self) -> None:
        if self.data_dir is not None and not Path(self.data_dir).is_dir():
            raise InputError(f"data_dir {self.data_dir} is no folder: give that of the texts")
        if self.part is not None and not 1 <= self.part[0] <= self.part[1]:
            part = "/".join(map(str, self.part))
            raise InputError(f"part is {part}; it takes K/N with K from 1 to N")

    def cells(self) -> list[Cell]:
        """In the order in which they are done.

        Raises:
            InputError: the plan, or a cell of it, is refused; or there are no such cells.
        """
        plan = read_plan(self.plan, self.scale)
        only = {
            axis: [plan.label(axis, text) for text in texts]
            for axis, texts in (self.only or {}).items()
        }
        cells = cells_of(plan, data_dir=self.data_dir, only=only)
        if not cells:
            such = ", ".join(f"{a}={x}" for a, labels in only.items() for x in labels)
            such = f" with {such}" if such else ""
            empty = next((axis for axis, labels in plan.axes.items() if not labels), None)
            why = "it skips them all" if empty is None else f"its axis {empty} has no value"
            raise InputError(f"plan {plan.name} has no cell{such}: {why}")
        return cells if self.part is None else cells[self.part[0] - 1 :: self.part[1]]

    def command(self, cell: Cell) -> str:
        """The command that does one cell, into a folder runs; an original's, all cells of its
        model."""
        words: list[Any] = ["q2n", "sweep", self.plan, "--output", "runs"]
        words += ["--scale", self.scale] if self.scale is not None else []
        words += [part for axis, x in cell.labels.items() for part in ("--only", f"{axis}={x}")]
        return shlex.join(map(str, words))


def run_sweep(
    request: Request,
    output: str | Path,
    *,
    keep: bool = False,
    retry: bool = False,
    known: Sequence[str | Path] = (),
    reporter: Reporter | None = None,
) -> Outcome:
    """Do the cells of a plan that no process has done or does.

    Args:
        output: the folder of the records; several processes and plans may share it.
        keep: leave the checkpoints in it.
        retry: do again what was refused.
        known: folders or files of records from elsewhere: cells that stand there are copied.

    Raises:
        InputError: the plan is refused, records cannot be read, the folder cannot be written, or
            tasks lack the harness or a file.
    """
    reporter, cells = reporter or Reporter(), request.cells()
    tasks = next((cell.tasks for cell in cells if cell.tasks is not None), None)
    if tasks is not None:  # of the plan, in every cell
        named_tasks(tasks.names, request.data_dir, shots=tasks.shots)
    runs = Runs(Path(output), _records(known))
    measurer = Measurer(runs.work, reporter, data_dir=request.data_dir, keep=keep)
    return sweep(cells, runs, measurer, request.command, reporter, retry=retry)


def estimated(
    cells: Sequence[Cell],
    output: str | Path,
    known: Sequence[str | Path] = (),
    *,
    retry: bool = False,
) -> tuple[list[Cell], dict[str, Any]]:
    """The cells that `run_sweep` would do, and how long they will take (`estimate.total`). Nothing
    is made for the question.

    Raises:
        InputError: as `run_sweep`.
    """
    elsewhere = _records(known)
    runs = Runs(Path(output), elsewhere, to_write=False)
    left = [x for x in cells if not runs.is_done(x, retry) and runs.same(x, retry) is None]
    records = [record for cell in cells if (record := runs.record(cell)) is not None]
    return left, total(left, [*records, *elsewhere])


def _records(places: Sequence[str | Path]) -> Sequence[ExperimentRecord]:
    """All that lie in these places; none where no place is given."""
    return read_runs(map(Path, places)).records if places else ()
