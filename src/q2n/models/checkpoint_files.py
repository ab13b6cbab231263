"""The files of a checkpoint folder: where they come from, which tensor lies in which.

Only safetensors are read: nothing is unpickled. The header of every file is read once at
the start, so a truncated or missing shard is found before any work is done.
"""

import json
import os
from pathlib import Path

from huggingface_hub import errors as hub
from huggingface_hub import snapshot_download
from jaxtyping import Shaped
from safetensors import SafetensorError, safe_open
from torch import Tensor

from q2n.errors import InputError
from q2n.models.packaged import packaged_checkpoint

AUXILIARY_FILES = (
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "vocab.*",
    "merges.txt",
    "*.model",
)
"""What travels with a model unchanged."""

CODE_FILES = ("*.py",)
"""What travels with it too where `trust_remote_code` is given."""

WEIGHT_FILES = ("model*.safetensors", "*.json")
"""Weights under the names that transformers gives them, their index, config.json."""


def resolve_checkpoint(
    name: str, revision: str | None = None, *, trust_remote_code: bool = False
) -> Path:
    """The folder of a checkpoint: a path as it is, a packaged model, or a hub download.

    Raises:
        InputError: none of these.
    """
    if not name:
        raise InputError("no model is named; give a checkpoint folder or a hub name")
    if os.path.isdir(name):  # never raises, as Path does where a name is too long
        return Path(name)
    return packaged_checkpoint(name) or _download(name, revision, trust_remote_code)


def auxiliary_patterns(trust_remote_code: bool) -> tuple[str, ...]:
    """Names of what travels with the weights; code only if it may run."""
    return (*AUXILIARY_FILES, *(CODE_FILES if trust_remote_code else ()))


def _download(name: str, revision: str | None, trust_remote_code: bool) -> Path:
    patterns = [*WEIGHT_FILES, *auxiliary_patterns(trust_remote_code)]
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except (
        hub.HFValidationError,
        hub.HTTPError,  # type: ignore[attr-defined]  # of httpx or httpx2, by version
        OSError,
    ) as cause:
        raise InputError(
            f"model {name!r} is neither a folder, nor a packaged model, nor could it be "
            f"downloaded ({type(cause).__name__}); give the path of a checkpoint folder"
        ) from cause


class TensorFiles:
    """The tensors of a checkpoint folder by their names in the files.

    Raises:
        InputError: as `tensor_files`.
    """

    def __init__(self, folder: Path):
        self.file_of = tensor_files(folder)
        self._open_file: tuple[Path, safe_open] | None = None

    def shape(self, key: str) -> tuple[int, ...]:
        """Shape of a tensor, from the header."""
        return tuple(self._handle(key).get_slice(key).get_shape())

    def tensor(self, key: str) -> Shaped[Tensor, "..."]:
        """A tensor on the CPU, in its stored dtype, in memory of its own.

        safetensors hands out views of one mapping: without the copy, whoever changes a tensor
        changes what everybody else has read or will read.

        Raises:
            InputError: it cannot be read.
        """
        try:
            return self._handle(key).get_tensor(key).clone()
        except SafetensorError as cause:
            raise InputError(
                f"{self.file_of[key]}: tensor {key!r} cannot be read ({cause}); "
                "fetch the checkpoint again"
            ) from cause

    def _handle(self, key: str) -> safe_open:
        """One file is open at a time: an open file is mapped memory."""
        file = self.file_of[key]
        if self._open_file is None or self._open_file[0] != file:
            self._open_file = (file, open_tensors(file))
        return self._open_file[1]


def tensor_files(path: Path) -> dict[str, Path]:
    """Tensor name -> the file of a checkpoint folder that holds it.

    Raises:
        InputError: there are no safetensors, a file is damaged or missing, or it lacks a
            tensor that the index says it holds.
    """
    index = path / "model.safetensors.index.json"
    if index.exists():
        return _indexed_files(path, index)
    single = path / "model.safetensors"
    if not single.exists():
        raise InputError(
            f"{path} holds no model.safetensors and no model.safetensors.index.json; "
            "pickled checkpoints (.bin, .pt) are not read: convert them to safetensors first"
        )
    return dict.fromkeys(open_tensors(single).keys(), single)


def _indexed_files(path: Path, index: Path) -> dict[str, Path]:
    try:
        weight_map = json.loads(index.read_text())["weight_map"]
        files = {key: path / file for key, file in weight_map.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as cause:
        raise InputError(
            f"{index}: not JSON with a weight_map of tensor and file names "
            f"({type(cause).__name__}: {cause}); fetch it again"
        ) from cause
    missing = sorted({file.name for file in files.values() if not file.exists()})
    if missing:
        raise InputError(
            f"{path}: the index names files that are missing: {missing}; fetch the checkpoint again"
        )
    held = {file: set(open_tensors(file).keys()) for file in set(files.values())}
    for key, file in files.items():
        if key not in held[file]:
            raise InputError(
                f"{file} has no tensor {key!r}, which {index.name} says it holds; fetch both again"
            )
    return files


def open_tensors(file: Path) -> safe_open:
    """A safetensors file, opened lazily.

    Raises:
        InputError: it is missing, truncated or something else.
    """
    try:
        return safe_open(file, framework="pt", device="cpu")
    except (SafetensorError, OSError) as cause:
        raise InputError(
            f"{file} is missing, truncated or not safetensors ({cause}); fetch it again"
        ) from cause
