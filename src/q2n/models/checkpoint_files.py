"""The files of a checkpoint folder: where they come from, which tensor lies in which.

Only safetensors are read: nothing is unpickled. The header of every file is read once at
the start, so a truncated or missing shard is found before any work is done.
"""

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import constants, snapshot_download
from huggingface_hub import errors as hub
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from jaxtyping import Float64, Shaped
from torch import Tensor

from q2n.errors import InputError
from q2n.hub import hub_answers
from q2n.models.auxiliary_files import CODE_FILES, auxiliary_patterns
from q2n.models.one_pass import digest_and_extremes
from q2n.models.packaged import packaged_checkpoint
from q2n.models.tensor_file import Place, read_places, read_tensor

INDEX = "model.safetensors.index.json"
"""Of a checkpoint in several files."""

CONFIG_FILE = "config.json"

WEIGHT_FILES = ("model*.safetensors", INDEX, CONFIG_FILE)
"""Weights under the names that transformers gives them, their index, config.json."""


def resolve_checkpoint(
    name: str,
    revision: str | None = None,
    *,
    trust_remote_code: bool = False,
    weights: bool = True,
) -> Path:
    """The folder of a checkpoint: a path as it is, a packaged model, or a hub download.

    Args:
        weights: whether a download brings them and what travels with them, or config.json alone.

    Raises:
        InputError: none of these, or a revision of what has none.
    """
    if not name:
        raise InputError("no model is named; give a checkpoint folder or a hub name")
    name = os.path.expanduser(name)
    if os.path.isdir(name):  # never raises, as Path does where a name is too long
        if revision is not None:
            raise InputError(
                f"revision {revision!r} is of a model on the hub, and {name} is a folder here; "
                "leave --revision out"
            )
        return Path(name)
    if os.path.isfile(name):
        raise InputError(f"model {name!r} is a file; give the folder that holds it")
    travelling = (*WEIGHT_FILES, *auxiliary_patterns(trust_remote_code))
    code = CODE_FILES if trust_remote_code else ()
    patterns = travelling if weights else (CONFIG_FILE, *code)
    return packaged_checkpoint(name) or _download(name, revision, patterns)


def _download(name: str, revision: str | None, patterns: Sequence[str]) -> Path:
    silent = False
    try:
        validate_repo_id(name)
        silent = not constants.HF_HUB_OFFLINE and not hub_answers()
        return Path(
            snapshot_download(
                name, revision=revision, allow_patterns=list(patterns), local_files_only=silent
            )
        )
    except (
        hub.HFValidationError,
        hub.HTTPError,  # type: ignore[attr-defined]  # of httpx or httpx2, by version
        OSError,
    ) as cause:
        reason = f"no answer from {constants.ENDPOINT}" if silent else type(cause).__name__
        raise InputError(
            f"model {name!r} is neither a folder, nor a packaged model, nor could it be "
            f"downloaded ({reason}); give the path of a checkpoint folder"
        ) from cause


class StoredTensors(ABC):
    """The tensors of a checkpoint folder by their names in the files."""

    folder: Path
    file_of: dict[str, Path]
    """Name -> the file that holds it."""

    @property
    def files(self) -> set[Path]:
        """All files."""
        return {*self.file_of.values()}

    @abstractmethod
    def shape(self, key: str) -> tuple[int, ...]:
        """Shape of a tensor, from the header."""

    @abstractmethod
    def dtype(self, key: str) -> str:
        """Dtype of a tensor as safetensors calls it ("BF16"), from the header."""

    @abstractmethod
    def size_bytes(self, key: str) -> int:
        """Bytes of a tensor, from the header."""

    @abstractmethod
    def digest_and_extremes(self, file: Path) -> tuple[bytes, dict[str, Float64[Tensor, " 2"]]]:
        """SHA-256 of one of the files and (least, greatest) of the floating-point tensors that are
        read from it.

        Raises:
            InputError: it cannot be read.
        """

    @abstractmethod
    def tensor(self, key: str) -> Shaped[Tensor, "..."]:
        """A tensor on the CPU, in its stored dtype, in memory of its own.

        Raises:
            InputError: it cannot be read.
        """

    def entry(self, key: str, index: int) -> Shaped[Tensor, "..."]:
        """`tensor(key)[index]`, by itself where it can be read so. Raises as `tensor`."""
        return self.tensor(key)[index].clone()


class TensorFiles(StoredTensors):
    """As the files hold them; `named` is the file that config.json names, if it does.

    Raises:
        InputError: as `tensor_files`.
    """

    def __init__(self, folder: Path, named: str | None = None):
        self.folder, held = folder, _held(folder, named)
        self.file_of = {key: file for key, (file, _) in held.items()}
        self._places = {key: place for key, (_, place) in held.items()}

    def shape(self, key: str) -> tuple[int, ...]:
        return self._places[key].shape

    def dtype(self, key: str) -> str:
        return self._places[key].dtype

    def size_bytes(self, key: str) -> int:
        return self._places[key].size

    def digest_and_extremes(self, file: Path) -> tuple[bytes, dict[str, Float64[Tensor, " 2"]]]:
        try:
            digest, extremes = digest_and_extremes(file)
        except OSError as cause:
            raise InputError(f"{file} cannot be read ({cause}); fetch it again") from cause
        return digest, {key: pair for key, pair in extremes.items() if self.file_of[key] == file}

    def tensor(self, key: str) -> Shaped[Tensor, "..."]:
        with self._readable(key):
            return read_tensor(self.file_of[key], self._places[key])

    def entry(self, key: str, index: int) -> Shaped[Tensor, "..."]:
        with self._readable(key):
            return read_tensor(self.file_of[key], self._places[key], index)

    @contextmanager
    def _readable(self, key: str) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as cause:
            raise InputError(
                f"{self.file_of[key]}: tensor {key!r} cannot be read ({cause}); "
                "fetch the checkpoint again"
            ) from cause


def tensor_files(path: Path, named: str | None = None) -> dict[str, Path]:
    """Tensor name -> the file of a checkpoint folder that holds it, as `from_pretrained` reads it.

    Raises:
        InputError: there are no safetensors, a file is damaged, missing or outside the folder, or
            it lacks a tensor that the index says it holds.
    """
    return {key: file for key, (file, _) in _held(path, named).items()}


def _held(path: Path, named: str | None) -> dict[str, tuple[Path, Place]]:
    """Tensor name -> its file and its place there. Raises as `tensor_files`."""
    weights = _weights_file(path, named)
    indexed = weights.suffix == ".json"
    held = _indexed_files(path, weights) if indexed else {weights: read_places(weights)}
    return {  # the last file counts
        key: (file, place) for file, places in held.items() for key, place in places.items()
    }


def _weights_file(path: Path, named: str | None) -> Path:
    """The file or index that transformers reads: the one that config.json names
    (`transformers_weights`); else one file before an index, which may be left from earlier."""
    if named is not None:
        return _inside(path, named, "transformers_weights of config.json")
    for name in ("model.safetensors", INDEX):
        if (path / name).is_file():
            return path / name
    if gguf := sorted(path.glob("*.gguf")):
        raise InputError(
            f"{path} holds {gguf[0].name} and no safetensors; GGUF files are quantized: give "
            "the checkpoint that it was made from"
        )
    raise InputError(
        f"{path} holds no model.safetensors and no {INDEX}; "
        "pickled checkpoints (.bin, .pt) are not read: convert them to safetensors first"
    )


def _inside(path: Path, name: str, where: str) -> Path:
    """A file of the folder itself."""
    if name in ("", ".", "..") or set(name) & set("/\\\0"):
        raise InputError(f"{path}: {where} names {name!r}, which is no file of this folder")
    return path / name


def _indexed_files(path: Path, index: Path) -> dict[Path, dict[str, Place]]:
    """The files that an index names, in transformers' order, and what each holds."""
    file_of = {
        key: _inside(path, file, index.name) for key, file in sorted(_weight_map(index).items())
    }
    files = sorted(set(file_of.values()))
    missing = [file.name for file in files if not file.exists()]
    if missing:
        raise InputError(
            f"{path}: the index names files that are missing: {missing}; fetch the checkpoint again"
        )
    held = {file: read_places(file) for file in files}
    for key, file in file_of.items():
        if key not in held[file]:
            raise InputError(
                f"{file} has no tensor {key!r}, which {index.name} says it holds; fetch both again"
            )
    return held


def _weight_map(index: Path) -> dict[str, str]:
    """Tensor name -> file name, as an index says."""
    try:
        weight_map = dict(json.loads(index.read_text())["weight_map"])
        if not all(isinstance(file, str) for file in weight_map.values()):
            raise TypeError("a file name is no string")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as cause:
        raise InputError(
            f"{index}: not JSON with a weight_map of tensor and file names "
            f"({type(cause).__name__}: {cause}); fetch it again"
        ) from cause
    return weight_map
