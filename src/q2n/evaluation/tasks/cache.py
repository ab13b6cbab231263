"""Results that were measured before, in one JSON file.

The harness can keep single answers in a database, but under the question alone, whatever model
answered, and pickled. Here whole results are kept, each under all that it depends on: the bytes of
the checkpoint, the task, limit, examples, batch size, dtype, device, the data and the versions of
the programs. A result is written as soon as it is there, by an atomic rename: an interrupted run
begins again with the first task that it had not finished.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from q2n.disk.whole import write_whole
from q2n.errors import InputError
from q2n.evaluation.tasks.results import TaskResult

KIND = "q2n task results"
CHECKPOINT_SUFFIXES = (
    ".safetensors",
    ".json",
    ".model",
    ".txt",
    ".jinja",
    ".bpe",
    ".tiktoken",
    ".py",
)

Key = Mapping[str, Any]
"""All that a result depends on, as JSON values."""


def checkpoint_digest(folder: Path) -> str:
    """SHA-256 of the files of a checkpoint that decide what it computes: weights, configuration,
    tokenizer."""
    total = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.suffix in CHECKPOINT_SUFFIXES and file.is_file():
            with file.open("rb") as stream:
                total.update(file.name.encode() + hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()


class ResultCache:
    """A file of results; several processes may use it."""

    def __init__(self, file: Path):
        """
        Raises:
            InputError: what is there is no such file, or it cannot be read or written.
        """
        self._file = file
        self._entries()
        if not os.access(file if file.exists() else file.parent, os.W_OK):
            raise InputError(f"the cache {file} cannot be written; choose another --cache")

    def find(self, key: Key) -> TaskResult | None:
        """The result that was measured under these conditions."""
        found = [entry["result"] for entry in self._entries() if entry["key"] == key]
        return TaskResult.from_json(found[-1]) if found else None

    def add(self, key: Key, result: TaskResult) -> None:
        """Keep a result."""
        with FileLock(self._file.with_name(f".{self._file.name}.lock")):
            others = [entry for entry in self._entries() if entry["key"] != key]
            entries = [*others, {"key": dict(key), "result": result.to_json()}]
            values = {"kind": KIND, "results": entries}
            write_whole(self._file, json.dumps(values, indent=1).encode())

    def _entries(self) -> list[dict[str, Any]]:
        if not self._file.exists():
            return []
        try:
            values = json.loads(self._file.read_text(encoding="utf-8"))
            if values["kind"] == KIND:
                return values["results"]
        except (OSError, ValueError, LookupError, TypeError):
            pass
        raise InputError(f"{self._file} is not a cache of task results; choose another --cache")
