"""Which local file holds which part of a task, and its lines.

All files lie in one folder, or in "zeroshot" within it where corpora lie beside them; one JSON
object a line, either in the fields of the hub's data sets or in those that `hub_schema` converts. A
task with subjects has the subject in each line.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from q2n.data.decoding import lines
from q2n.errors import InputError, reason_of
from q2n.evaluation.tasks.hub_schema import Convert, arc, fields, hellaswag, race
from q2n.option_types import shown

BESIDE_CORPORA = "zeroshot"
"""Folder of the task files in a folder of corpora."""


@dataclass(frozen=True, kw_only=True)
class LocalTask:
    """The files of one task of the harness."""

    convert: Convert
    evaluated: tuple[str, str]
    """The split that is evaluated, as the harness calls it, and its file."""
    examples: tuple[str, str] | None = None
    """The same of the split that examples in the prompt come from, where it is another one."""
    own_shots: int = 0
    """Examples that the task has in its prompts unless another number is given."""
    subjects: bool = False
    """Whether each line has a "subject", one task of the harness each."""

    def files(self, shots: int | None) -> dict[str, str]:
        """Split -> the file that is needed for it."""
        wanted = self.own_shots if shots is None else shots
        splits = [self.evaluated, *([self.examples] if self.examples and wanted else [])]
        return dict(splits)

    def may_be_cut(self, shots: int | None) -> bool:
        """Whether no example comes from the lines that are evaluated."""
        return self.examples is not None or not (self.own_shots if shots is None else shots)


_QUESTIONS = fields("question", "choices", "answer")
_TRUTHFULQA = LocalTask(
    convert=fields("question", "mc1_targets", "mc2_targets"),
    evaluated=("validation", "truthfulqa_mc_validation.jsonl"),
)
LOCAL_TASKS: Mapping[str, LocalTask] = {
    "hellaswag": LocalTask(
        convert=hellaswag,
        evaluated=("validation", "hellaswag_val.jsonl"),
        examples=("train", "hellaswag_train.jsonl"),
    ),
    "winogrande": LocalTask(
        convert=fields("sentence", "option1", "option2", "answer"),
        evaluated=("validation", "winogrande_xl_val.jsonl"),
        examples=("train", "winogrande_xl_train.jsonl"),
    ),
    "piqa": LocalTask(
        convert=fields("goal", "sol1", "sol2", "label"),
        evaluated=("validation", "piqa_valid.jsonl"),
        examples=("train", "piqa_train.jsonl"),
    ),
    "arc_easy": LocalTask(
        convert=arc,
        evaluated=("test", "arc_easy_test.jsonl"),
        examples=("train", "arc_easy_train.jsonl"),
    ),
    "arc_challenge": LocalTask(
        convert=arc,
        evaluated=("test", "arc_challenge_test.jsonl"),
        examples=("train", "arc_challenge_train.jsonl"),
    ),
    "mmlu": LocalTask(
        convert=_QUESTIONS,
        evaluated=("test", "mmlu_test.jsonl"),
        examples=("dev", "mmlu_dev.jsonl"),
        subjects=True,
    ),
    "race": LocalTask(convert=race, evaluated=("test", "race_high_test.jsonl")),
    "truthfulqa_mc1": _TRUTHFULQA,
    "truthfulqa_mc2": _TRUTHFULQA,
    "lambada_openai": LocalTask(
        convert=fields("text"), evaluated=("test", "lambada_openai_test.jsonl")
    ),
    "gsm8k": LocalTask(
        convert=fields("question", "answer"),
        evaluated=("test", "gsm8k_test.jsonl"),
        examples=("train", "gsm8k_train.jsonl"),
        own_shots=5,
    ),
    "ceval-valid": LocalTask(
        convert=fields("question", "A", "B", "C", "D", "answer"),
        evaluated=("val", "ceval_val.jsonl"),
        examples=("dev", "ceval_dev.jsonl"),
        subjects=True,
    ),
}
"""Task or group of the harness -> its files."""


def files_folder(path: str | Path) -> Path:
    """The folder that holds the files.

    Raises:
        InputError: `path` is no folder.
    """
    folder = Path(os.path.expanduser(path))
    if not os.path.isdir(folder):  # never raises, as Path does where a name is too long
        raise InputError(f"there is no folder {shown(str(path))}; give --data-dir the path of one")
    return folder / BESIDE_CORPORA if (folder / BESIDE_CORPORA).is_dir() else folder


def require_files(folder: Path, tasks: Iterable[str], shots: int | None) -> None:
    """Refuse a folder that lacks a file.

    Raises:
        InputError: naming the tasks and the files, or a task that has no files here at all.
    """
    missing: dict[str, list[str]] = {}
    for task in tasks:
        if task not in LOCAL_TASKS:
            raise InputError(
                f"task {task!r} is not read from local files, only {', '.join(LOCAL_TASKS)}; "
                "leave --data-dir out to take it from the hub"
            )
        for file in LOCAL_TASKS[task].files(shots).values():
            if not (folder / file).is_file():
                missing.setdefault(task, []).append(file)
    if missing:
        named = "; ".join(f"{task}: {', '.join(files)}" for task, files in missing.items())
        raise InputError(f"files are missing in {folder} ({named})")


def losses(folder: Path, tasks: Iterable[str]) -> list[str]:
    """What the files have lost of the original, so that scores can differ from the hub's.

    Raises:
        InputError: a file is no JSON Lines file.
    """
    file = folder / LOCAL_TASKS["hellaswag"].evaluated[1]
    if "hellaswag" not in tasks or "query" not in next(_objects(file), (0, {}))[1]:
        return []
    return [
        f"{file.name} has endings without marks such as [step]: the harness has another space "
        "before some endings of its WikiHow questions"
    ]


def digest(folder: Path, task: str, shots: int | None) -> str:
    """SHA-256 of the files that a task reads."""
    total = hashlib.sha256()
    for file in LOCAL_TASKS[task].files(shots).values():
        with (folder / file).open("rb") as stream:
            total.update(hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()


def lines_by_subject(
    file: Path, task: LocalTask, most: int | None
) -> dict[str | None, list[dict[str, Any]]]:
    """The first lines of each subject in the hub's fields; subject None where there are none.

    Args:
        most: lines of a subject; None takes all.

    Raises:
        InputError: a line that is not as it must be, with its number.
    """
    kept: dict[str | None, list[dict[str, Any]]] = {}
    objects = _objects(file)
    for number, line in objects if task.subjects else islice(objects, most):
        try:
            subject = line["subject"] if task.subjects else None
            converted = task.convert(line)
        except (LookupError, TypeError, ValueError, AttributeError) as cause:
            raise InputError(
                f"{file}, line {number}: it lacks a field of the task, or has another kind of "
                f"value in it ({reason_of(cause)})"
            ) from cause
        of_subject = kept.setdefault(subject, [])
        if most is None or len(of_subject) < most:
            of_subject.append(converted)
    if not kept:
        raise InputError(f"{file} has no lines")
    return kept


def _objects(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number and JSON object of each line that is not blank."""
    for number, line in enumerate(lines(file), 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except ValueError as cause:
            raise InputError(f"{file}, line {number} is not JSON ({cause})") from cause
        if not isinstance(values, dict):
            raise InputError(f"{file}, line {number} is not a JSON object")
        yield number, values
