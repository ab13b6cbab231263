"""A model as a plan names it: where it lies, and how its content is known again."""

import hashlib
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from q2n.disk.failures import reason
from q2n.errors import InputError
from q2n.models.checkpoint_files import WEIGHT_FILES, resolve_checkpoint
from q2n.models.packaged import PACKAGED


@dataclass(frozen=True)
class PlanModel:
    """Two names of one model that differ in their revision are two models."""

    name: str
    revision: str | None = None
    """Of a model on the hub; None: the default one."""
    trust_remote_code: bool = False

    @property
    def is_folder(self) -> bool:
        """Whether its name is a place, where something else may lie tomorrow."""
        return os.path.isdir(self.name)

    def folder(self) -> Path:
        """Where it lies, fetched if need be. Raises as `resolve_checkpoint`."""
        return resolve_checkpoint(
            self.name, self.revision, trust_remote_code=self.trust_remote_code
        )

    def sha256(self) -> str | None:
        """Of the files of weights and configuration; each version of transformers writes those of
        a packaged model otherwise, and it has none.

        Raises:
            InputError: there is no such model, or a file cannot be read.
        """
        if self.name in PACKAGED and not self.is_folder:
            return None
        folder = self.folder()
        try:
            files = sorted({x for pattern in WEIGHT_FILES for x in folder.glob(pattern)})
            states = ((x, x.stat()) for x in files)
            return _digest(tuple((x, s.st_size, s.st_mtime_ns) for x, s in states))
        except OSError as cause:
            raise InputError(f"{folder} cannot be read ({reason(cause)})") from cause


@cache
def _digest(files: tuple[tuple[Path, int, int], ...]) -> str:
    """Read once, as long as no file has another size or time."""
    total = hashlib.sha256()
    for file, _, _ in files:
        with file.open("rb") as stream:
            total.update(file.name.encode() + hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()
