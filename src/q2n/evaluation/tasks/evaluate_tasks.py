"""Scores of a model on tasks, by name: files, data, checkpoint, measurement.

Each task runs by itself, so that its score does not depend on what else was asked for (the harness
sorts all questions of a call into batches) and is kept as soon as it is there.
"""

import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import constants
from transformers import PreTrainedModel

from q2n.errors import InputError
from q2n.evaluation.loading import MeasuredModel
from q2n.evaluation.tasks.cache import Key, ResultCache, checkpoint_digest
from q2n.evaluation.tasks.harness import (
    Tasks,
    all_names,
    harness_version,
    require_harness,
    result_of,
    wrapped,
)
from q2n.evaluation.tasks.local_files import digest, files_folder, losses, require_files
from q2n.evaluation.tasks.local_tasks import write_local_task
from q2n.evaluation.tasks.names import task_names
from q2n.evaluation.tasks.results import TaskResult, TaskResults
from q2n.evaluation.tasks.surroundings import offline
from q2n.hub import hub_answers
from q2n.logging import Bar, Reporter
from q2n.models.devices import parse_device, requested_dtype
from q2n.option_types import Count, CountOrZero, check_fields, plain
from q2n.version import __version__


@dataclass(frozen=True, kw_only=True)
class TaskConditions:
    """What the scores of a model depend on, as `evaluate_tasks` says.

    Raises:
        InputError: a value that cannot be.
    """

    limit: Count | None
    shots: CountOrZero | None
    batch_size: Count
    device: str
    dtype: str | None
    trust_remote_code: bool

    def __post_init__(self) -> None:
        check_fields(self)
        parse_device(self.device)
        requested_dtype(self.dtype)


def evaluate_tasks(
    model: str | Path | PreTrainedModel,
    *,
    tasks: list[str] | tuple[str, ...],
    limit: int | None = None,
    shots: int | None = None,
    batch_size: int = 1,
    data_dir: str | Path | None = None,
    task_dir: str | Path | None = None,
    cache: str | Path | None = None,
    device: str = "auto",
    dtype: str | None = "auto",
    trust_remote_code: bool = False,
    tokenizer: Any = None,
    reporter: Reporter | None = None,
) -> TaskResults:
    """Scores of a full-precision or quantized model on tasks of lm-evaluation-harness.

    Args:
        model: as for `quantize`; checkpoints that q2n wrote are recognised.
        tasks: names of the harness, or "zeroshot" (the seven tasks of the papers), "truthfulqa",
            "lambada".
        limit: at most so many questions of each task, of each subject of mmlu and ceval-valid.
        shots: examples in a prompt; None: the task's own number.
        batch_size: requests in one forward pass.
        data_dir: folder of local files (docs/measuring.md), used without a network; None: the hub.
        task_dir: new folder to which the harness's configurations with these files go, for
            `lm_eval --include_path`; None: a temporary one.
        cache: file of earlier results; for a checkpoint, not for an object.
        device, dtype: for a model that is loaded, dtype "auto" or None in the checkpoint's; an
            object is taken as it is.
        tokenizer: needed for a model object.

    Raises:
        InputError: the harness is not installed, no such task, model or file, or the model does
            not run.
        NumericalError: the model's answers are NaN or infinite.
    """
    on = TaskConditions(
        limit=plain(limit),
        shots=plain(shots),
        batch_size=plain(batch_size),
        device=str(device),
        dtype=dtype,
        trust_remote_code=trust_remote_code,
    )
    wanted = [tasks] if isinstance(tasks, str) else tasks
    names, data = named_tasks(wanted, data_dir, shots=on.shots)
    reporter = reporter or Reporter()
    if data is None and task_dir is not None:
        raise InputError("task_dir keeps configurations that read local files: give data_dir too")
    for note in losses(data, names) if data is not None else ():
        reporter.note(note)
    subject = MeasuredModel(
        model, tokenizer, device=on.device, dtype=on.dtype, trust_remote_code=on.trust_remote_code
    )
    kept = _Kept(subject, on, data, Path(cache) if cache is not None else None)
    results = kept.results(names)
    for name in results:
        reporter.note(f"{name} is from the cache {cache}")
    to_do = [name for name in names if name not in results]
    if to_do:
        with _loaded(to_do, on, data, Path(task_dir) if task_dir is not None else None) as loaded:
            for result in loaded.measure(subject, reporter):
                kept.add(result)
                reporter.event("task", **result.to_json())
                results[result.task] = result
    return TaskResults(tuple(results[name] for name in names))


def named_tasks(
    tasks: Iterable[str], data_dir: str | Path | None, *, shots: int | None
) -> tuple[list[str], Path | None]:
    """The harness's names of tasks and the folder of their files, None of the hub's.

    Raises:
        InputError: the harness is not installed, no task is called so, or a file is missing.
    """
    require_harness()
    names = task_names(tasks, all_names)
    if data_dir is None:
        return names, None
    data = files_folder(data_dir)
    require_files(data, names, shots)
    return names, data


class _Kept:
    """Results of earlier calls under the same conditions, where there is a cache."""

    def __init__(
        self, subject: MeasuredModel, on: TaskConditions, data: Path | None, file: Path | None
    ):
        self._on, self._data, self._cache, self._checkpoint = on, data, None, ""
        if file is None:
            return
        if subject.folder is None:
            raise InputError("a model object has no checkpoint to know it by: leave cache out")
        self._cache = ResultCache(file)
        self._checkpoint = checkpoint_digest(subject.folder)

    def results(self, names: list[str]) -> dict[str, TaskResult]:
        """Those that are there."""
        if self._cache is None:
            return {}
        found = {name: self._cache.find(self._key(name)) for name in names}
        return {name: result for name, result in found.items() if result is not None}

    def add(self, result: TaskResult) -> None:
        """Keep one."""
        if self._cache is not None:
            self._cache.add(self._key(result.task), result)

    def _key(self, name: str) -> Key:
        on = self._on
        files = None if self._data is None else digest(self._data, name, on.shots)
        return {
            "task": name,
            "checkpoint": self._checkpoint,
            "limit": on.limit,
            "shots": on.shots,
            "batch_size": on.batch_size,
            "dtype": on.dtype or "auto",
            "device": parse_device(on.device).type,
            "files": files,
            "versions": {
                "q2n": __version__,
                "lm_eval": harness_version(),
                "torch": torch.__version__,
                "transformers": transformers.__version__,
            },
        }


class _Loaded:
    """Tasks with their data."""

    def __init__(self, names: list[str], on: TaskConditions, source: str, folder: Path | None):
        self._tasks, self._on, self._source = Tasks(names, folder), on, source
        self._loaded = {name: self._tasks.load(name) for name in names}

    def measure(self, subject: MeasuredModel, reporter: Reporter) -> Iterator[TaskResult]:
        """One result after another."""
        on = self._on
        model, tokenizer = subject.load()
        with reporter.bar("tasks", len(self._loaded)) as bar:
            answers = _Count(bar)
            lm = wrapped(model, tokenizer, batch_size=on.batch_size, answered=answers.one)
            for name, task in self._loaded.items():
                answers.begin(name)
                start = time.perf_counter()
                said = self._tasks.run(lm, name, task, shots=on.shots, limit=on.limit)
                seconds = time.perf_counter() - start
                yield result_of(said, name, limit=on.limit, data=self._source, seconds=seconds)
                bar.advance()


class _Count:
    """Says beside the bar how many answers the model has given."""

    def __init__(self, bar: Bar):
        self._bar, self._name, self._answers = bar, "", 0

    def begin(self, name: str) -> None:
        """The task that is measured now."""
        self._name, self._answers = name, 0
        self._bar.detail(name)

    def one(self) -> None:
        """Another answer."""
        self._answers += 1
        self._bar.detail(f"{self._name}: {self._answers} answers")


@contextmanager
def _loaded(
    names: list[str], on: TaskConditions, data: Path | None, folder: Path | None
) -> Iterator[_Loaded]:
    """The tasks, from the hub or from local files without a network."""
    with ExitStack() as stack:
        if data is None:
            _require_hub()
            yield _Loaded(names, on, "hub", None)
            return
        stack.enter_context(offline())
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="q2n-tasks-")))
        _make_new(folder)
        configured = Tasks(names)
        for name in names:
            leaves = configured.leaves(name)
            write_local_task(folder, data, name, leaves, shots=on.shots, limit=on.limit)
        yield _Loaded(names, on, "files", folder.absolute())


def _make_new(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise InputError(f"{folder} is not empty; name a new folder for the tasks")
    except OSError as cause:
        raise InputError(f"the folder {folder} cannot be made ({cause})") from cause


def _require_hub() -> None:
    """Fail at once without a network; in offline mode leave the answer to the cache."""
    if not constants.HF_HUB_OFFLINE and not hub_answers():
        raise InputError(
            f"the tasks cannot be had from the Hugging Face hub (no answer from "
            f"{constants.ENDPOINT}); without a network give --data-dir FOLDER, or set "
            "HF_HUB_OFFLINE=1 if the data sets are in the local cache"
        )
