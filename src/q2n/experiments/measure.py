"""One cell: the model is quantized, measured and forgotten, and what it came to is a record.

The texts are opened first: one that cannot be measured costs no quantization. The checkpoint lies
in the sweep's working folder only as long as it is measured. A cell that was interrupted goes on
where its quantization was.
"""

import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from q2n.api import Quantized, evaluate_tasks, quantize
from q2n.disk.failures import is_of_disk
from q2n.disk.folders import partial_folder
from q2n.errors import InputError, Q2NError, ResumeError
from q2n.evaluation.tasks.results import TaskResult
from q2n.experiments.cells import Cell, portable
from q2n.experiments.plan import Spectra
from q2n.experiments.plan_model import PlanModel
from q2n.experiments.search import METHODS
from q2n.experiments.spectra import spectra_of
from q2n.experiments.surroundings import machine, peak_bytes, reset_peak, software
from q2n.experiments.texts import Original
from q2n.experiments.trials import Trials
from q2n.logging import Reporter
from q2n.report.experiment import ExperimentRecord, TaskScore
from q2n.report.kinds import kinds_of
from q2n.report.record import RECORD_FILE


@dataclass
class _Results:
    """What is known of a cell so far: fields of its record."""

    found: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def timed(self, what: str, since: float) -> None:
        self.seconds[what] = self.seconds.get(what, 0.0) + time.perf_counter() - since


class Measurer:
    """Does cells, one after the other; what several of them need is kept between them."""

    def __init__(self, work: Path, reporter: Reporter, *, data_dir: str | None, keep: bool):
        """
        Args:
            work: folder for checkpoints.
            data_dir: folder of local files for tasks; None: from the hub.
            keep: leave the checkpoints there.
        """
        self._work, self._reporter, self._data_dir, self._keep = work, reporter, data_dir, keep
        self._originals: dict[tuple[PlanModel, str], Original] = {}

    def record(self, cell: Cell, command: str) -> ExperimentRecord:
        """Do one cell. What q2n refuses or cannot compute is a record too.

        Raises:
            Q2NError: the disk is full or broken, of which no later cell may get a record.
        """
        started, results = datetime.now(UTC).isoformat(timespec="seconds"), _Results()
        reset_peak()
        try:
            self._do(cell, results)
        except Q2NError as cause:
            if is_of_disk(cause):
                raise
            results.found = {"refused": f"{type(cause).__name__}: {cause}"}
            self._leave(cell)
        return ExperimentRecord(
            cell=cell.id,
            key=cell.key,
            plan=cell.plan,
            title=cell.title,
            labels=cell.labels,
            places=cell.places,
            compare=cell.compare,
            settings=_settings(cell),
            software=software(),
            machine=machine(),
            started=started,
            command=command,
            seconds={what: round(seconds, 3) for what, seconds in results.seconds.items()},
            peak_bytes=peak_bytes(),
            **results.found,
        )

    def _do(self, cell: Cell, results: _Results) -> None:
        results.found["original_sha256"] = cell.original.sha256()
        if cell.spectra is not None:
            self._spectra(cell, cell.spectra, results)
        elif cell.settings is None:
            self._measure(cell, None, results)
        else:
            self._quantized(cell, results)

    def _spectra(self, cell: Cell, spectra: Spectra, results: _Results) -> None:
        since, settings = time.perf_counter(), {"model": cell.model, **(cell.settings or {})}
        found = spectra_of(settings, spectra.layers, self._reporter)
        results.timed("spectra", since)
        results.found |= {
            "spectra": found.records,
            "model_sha256": found.model_sha256,
            "calibration_sha256": found.calibration_sha256,
        }

    def _quantized(self, cell: Cell, results: _Results) -> None:
        settings, since = dict(cell.settings or {}), time.perf_counter()
        self._original(cell.original, cell.texts).require_texts()
        results.timed("texts", since)
        if cell.search is not None:
            settings |= self._searched(cell, settings, results)
        folder = self._checkpoint(cell)
        done = self._quantize(cell.model, folder, settings, results)
        results.found |= _costs(done)
        self._measure(cell, folder, results)
        self._trials(cell).unlink(missing_ok=True)
        if not self._keep:
            _remove(folder)

    def _leave(self, cell: Cell) -> None:
        """Of a cell that was refused the finished blocks stay; a whole checkpoint, if it is to be
        kept."""
        for folder in (self._trial(cell), *([] if self._keep else [self._checkpoint(cell)])):
            if folder.exists():
                shutil.rmtree(folder)

    def _checkpoint(self, cell: Cell) -> Path:
        return self._work / cell.key

    def _trial(self, cell: Cell) -> Path:
        """The checkpoint of one trial of a search."""
        return self._work / f"{cell.key}-trial"

    def _trials(self, cell: Cell) -> Path:
        """Where the trials of a search lie until its cell has been measured."""
        return self._work / f"{cell.key}-tried.json"

    def _searched(
        self, cell: Cell, settings: Mapping[str, Any], results: _Results
    ) -> dict[str, Any]:
        """The values that do best on the held-out text."""
        assert cell.search is not None
        held_out = self._original(cell.original, {"held out": cell.search.text})
        held_out.require_apart(self._original(cell.original, cell.texts))
        trials = Trials(self._trials(cell))

        def score(choice: Mapping[str, Any]) -> float:
            folder = self._trial(cell)
            self._quantize(cell.model, folder, {**settings, **choice}, results)
            since = time.perf_counter()
            divergence = held_out.divergence(folder)
            results.timed("search", since)
            _remove(folder)
            return divergence

        best = METHODS[cell.search.how](cell.search.over, trials.once(score))
        results.found |= {"tried": trials.tried, "chosen": best}
        return best

    def _quantize(
        self, model: str, folder: Path, settings: Mapping[str, Any], results: _Results
    ) -> Quantized:
        """Into `folder`, or the rest of it where an earlier process was interrupted. What is there
        is removed only where it is of other settings, another version or trial, or was half removed
        before."""
        how: dict[str, Any] = {**settings, "reporter": self._reporter}
        try:
            done = quantize(model, folder, resume=True, **how)
        except InputError as cause:
            half_removed = folder.exists() and not (folder / RECORD_FILE).exists()
            if not (isinstance(cause, ResumeError) or half_removed) or is_of_disk(cause):
                raise
            _remove(folder)
            done = quantize(model, folder, **how)
        seconds = results.seconds.get("quantization", 0.0)
        results.seconds["quantization"] = seconds + done.timings["quantization_seconds"]
        return done

    def _measure(self, cell: Cell, folder: Path | None, results: _Results) -> None:
        """On all texts and tasks; `folder` None: the original."""
        since, original = time.perf_counter(), self._original(cell.original, cell.texts)
        texts = original.measured() if folder is None else original.compared(folder)
        results.found["texts"] = texts
        results.timed("texts", since)
        if cell.tasks is not None:
            since = time.perf_counter()
            how = {
                "data_dir": self._data_dir,
                "reporter": self._reporter,
                "trust_remote_code": cell.original.trust_remote_code,
            }
            tasks = {**asdict(cell.tasks), **how}
            measured = cell.original.folder() if folder is None else folder
            found = evaluate_tasks(measured, tasks=tasks.pop("names"), **tasks)
            results.found["tasks"] = [_score(task) for task in found.tasks]
            results.timed("tasks", since)

    def _original(self, model: PlanModel, texts: Mapping[str, Mapping[str, Any]]) -> Original:
        place = (model, repr(texts))
        if place not in self._originals:
            self._originals[place] = Original(model, texts, self._reporter)
        return self._originals[place]


def _remove(folder: Path) -> None:
    """Remove a checkpoint, or what there is of one."""
    for place in (folder, partial_folder(folder)):
        if place.exists():
            shutil.rmtree(place)


def _costs(done: Quantized) -> dict[str, Any]:
    """What the record of a checkpoint says that a report shows."""
    return {
        "model_sha256": done.record["settings"]["model_sha256"],
        "calibration_sha256": done.record["settings"]["text_sha256"],
        "bits_per_weight": done.record["bits_per_weight"],
        "bits_per_weight_all": done.record["bits_per_weight_all"],
        "bytes": done.bytes_after,
        "layers": kinds_of(done.record["layers"], done.timings["layers"]),
        "notes": done.record["notes"],
    }


def _score(task: TaskResult) -> TaskScore:
    return TaskScore(
        task=task.task,
        acc=task.acc,
        acc_error=task.error_of("acc"),
        acc_norm=task.acc_norm,
        acc_norm_error=task.error_of("acc_norm"),
        questions=task.documents,
        limit=task.limit,
        shots=task.shots,
        harness=task.harness,
    )


def _settings(cell: Cell) -> dict[str, Any] | None:
    """As the record has them: without the place of the data on this machine."""
    if cell.settings is None:
        return None
    return {"model": cell.model, **portable(cell.settings)}
