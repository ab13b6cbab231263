"""The files of a run's folder, each read only with the checksum that it was written with.

    run.json                          sealed (disk/sealed.py)
    STEM-00000.json                   sealed; names itself, its run.json and its tensors by SHA-256
    STEM-00000.safetensors            the tensors of one block

Each is written under another name, flushed and renamed; the .json comes last, so that a block
either is there or is not. A file that fails is not repaired: it is named.
"""

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from q2n.disk.failures import reason, remedy
from q2n.disk.folders import is_working_folder, remove_known
from q2n.disk.sealed import seal, unseal
from q2n.disk.whole import write_whole
from q2n.errors import InputError, ResumeError
from q2n.pipeline.activations import is_batch_file

RUN_FILE = "run.json"
BLOCK, REFIT, TURN, COSTS, GRADIENTS = "block", "refit", "turn", "costs", "gradients"
"""Stems: the blocks as they were quantized, and after the whole model was refitted; the turn of a
learned rotation and what widths cost, a single file each; moments of gradients, a file a block."""
_BLOCK_FILE = re.compile(
    rf"({BLOCK}|{REFIT}|{TURN}|{COSTS}|{GRADIENTS})-\d{{5}}\.(json|safetensors)(\.\d+\.tmp)?"
)
_RUN_FILE = re.compile(r"run\.json(\.\d+\.tmp)?")


def is_run_file(path: str) -> bool:
    """Whether a run writes a file of that path into its folder."""
    return bool(_RUN_FILE.fullmatch(path) or _BLOCK_FILE.fullmatch(path) or is_batch_file(path))


class BlockFiles:
    """The files of the blocks of one stem, and run.json."""

    def __init__(self, folder: Path, stem: str):
        self.folder, self.stem = folder, stem

    def begin(self, start: Any) -> None:
        """Write run.json; blocks of an earlier run go.

        Raises:
            InputError: the folder cannot be written.
        """
        remove_known(self.folder, _BLOCK_FILE.fullmatch)
        _write(self.folder / RUN_FILE, seal(start))

    def start(self) -> Any:
        """What `begin` wrote. Raises as `read`."""
        return self._unsealed(RUN_FILE)[0]

    def count(self) -> int:
        """The number of finished blocks.

        Raises:
            ResumeError: one is missing before others.
        """
        name = re.compile(rf"{self.stem}-(\d{{5}})\.json")
        files = os.listdir(self.folder) if self.folder.is_dir() else []
        found = sorted(int(match[1]) for match in map(name.fullmatch, files) if match)
        for index, there in enumerate(found):
            if index != there:
                missing = self._name(index, ".json")
                raise self._refusal(missing, "is missing, and blocks after it are there")
        return len(found)

    def write(self, index: int, values: Mapping[str, Any], data: bytes) -> None:
        """Write one block: JSON values and the bytes of its tensors.

        Raises:
            InputError: the folder cannot be written.
        """
        identity = {
            "sha256": hashlib.sha256(data).hexdigest(),
            "run": self._run(),
            "file": self._name(index, ".json"),
        }
        _write(self.folder / self._name(index, ".safetensors"), data)
        _write(self.folder / self._name(index, ".json"), seal({**values, **identity}))

    def read(self, index: int) -> dict[str, Any]:
        """The JSON values of a finished block.

        Raises:
            ResumeError: the file cannot be read, is damaged, or belongs to another run or place.
        """
        name = self._name(index, ".json")
        values, _ = self._unsealed(name)
        if (values["run"], values["file"]) != (self._run(), name):
            raise self._refusal(name, "belongs to another run or block than its place says")
        return values

    def tensors(self, index: int, values: Mapping[str, Any]) -> bytes:
        """The bytes of a finished block's tensors; `values` are what `read` gave of it. Raises as
        `read`."""
        name = self._name(index, ".safetensors")
        data = self._bytes(name)
        if hashlib.sha256(data).hexdigest() != values["sha256"]:
            raise self._refusal(name, "is damaged (its checksum differs)")
        return data

    def _run(self) -> str:
        """Which run the blocks belong to: the SHA-256 of run.json; none before that is written."""
        return self._unsealed(RUN_FILE)[1] if is_working_folder(self.folder) else ""

    def _unsealed(self, name: str) -> tuple[dict[str, Any], str]:
        """The JSON of a file, and the SHA-256 of the file."""
        data = self._bytes(name)
        try:
            return unseal(data), hashlib.sha256(data).hexdigest()
        except ValueError as cause:
            raise self._refusal(
                name, f"is damaged, or another version of q2n wrote it ({cause})"
            ) from cause

    def _bytes(self, name: str) -> bytes:
        try:
            return (self.folder / name).read_bytes()
        except OSError as cause:
            raise self._refusal(name, f"cannot be read ({reason(cause)})") from cause

    def _refusal(self, name: str, what: str) -> ResumeError:
        """A file that cannot be used, and how to go on without it."""
        block, refits = name.partition(".")[0], f" and all {REFIT}-*" if self.stem == BLOCK else ""
        without = (
            "delete the folder and start again"
            if name == RUN_FILE
            else f"delete {block}.* and all later files of that name{refits}, then --resume"
        )
        return ResumeError(f"{self.folder / name} {what}; {without}")

    def _name(self, index: int, suffix: str) -> str:
        return f"{self.stem}-{index:05d}{suffix}"


def _write(file: Path, data: bytes) -> None:
    try:
        write_whole(file, data)
    except OSError as cause:
        raise InputError(
            f"{file} cannot be written ({reason(cause)}); {remedy(cause)}, then go on with --resume"
        ) from cause
