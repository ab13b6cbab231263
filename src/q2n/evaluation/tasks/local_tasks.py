"""A folder of task configurations that read local files: the harness's own, with other data.

Each YAML file includes the harness's file of the same task and says only where its lines are, so
that prompts, choices and metrics are the harness's. The lines are written beside it in the hub's
fields. `lm_eval --include_path FOLDER --tasks NAME` reads the same folder.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from q2n.errors import InputError
from q2n.evaluation.tasks.local_files import LOCAL_TASKS, LocalTask, lines_by_subject

SPLITS = ("training_split", "validation_split", "test_split", "fewshot_split")
"""What the harness's configurations call the parts of a data set."""

Leaves = Mapping[str, tuple[Path, Mapping[str, Any]]]
"""Task of the harness -> the file of its configuration and what that says."""


def write_local_task(
    folder: Path, data: Path, name: str, leaves: Leaves, *, shots: int | None, limit: int | None
) -> None:
    """Write the configuration and the lines of a task, or of all tasks of a group.

    Args:
        folder: to write into.
        data: the folder of local files.
        leaves: the tasks of which `name` consists.
        shots: examples in a prompt; None: the task's own number.
        limit: questions of each task that are needed; None: all.

    Raises:
        InputError: a file cannot be used, or lacks a subject.
    """
    task = LOCAL_TASKS[name]
    written: dict[str, dict[str, Path]] = {leaf: {} for leaf in leaves}
    for split, file in task.files(shots).items():
        most = limit if split == task.evaluated[0] and task.may_be_cut(shots) else None
        subjects = lines_by_subject(data / file, task, most)
        for leaf, (_, configuration) in leaves.items():
            subject = configuration["dataset_name"] if task.subjects else None
            if subject not in subjects:
                raise InputError(f"{data / file} has no line of the subject {subject!r}")
            target = folder / "lines" / f"{leaf}_{split}.jsonl"
            _write_lines(target, subjects[subject])
            written[leaf][split] = target
    for leaf, (source, configuration) in leaves.items():
        text = yaml.safe_dump(_overrides(source, configuration, task, written[leaf], folder))
        (folder / f"{leaf}.yaml").write_text(text, encoding="utf-8")


def _write_lines(file: Path, lines: list[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", encoding="utf-8", newline="\n") as stream:
        stream.writelines(f"{json.dumps(line)}\n" for line in lines)


def _overrides(
    source: Path,
    configuration: Mapping[str, Any],
    task: LocalTask,
    written: Mapping[str, Path],
    folder: Path,
) -> dict[str, Any]:
    """What differs from the harness's configuration: where the lines are, and splits that are not
    there, which would only be asked for examples."""
    missing = [key for key in SPLITS if configuration.get(key) not in written]
    return {
        "include": str(source),
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {
            "data_files": {split: str(file) for split, file in written.items()},
            "cache_dir": str(folder / "datasets"),
        },
        **dict.fromkeys(missing),
    }
