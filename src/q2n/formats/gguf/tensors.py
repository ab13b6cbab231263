"""The tensors of a GGUF file as dense weights: under the file's names, and under the model's.

Types become float32, rows that are interleaved within a head go back to their places, what was
added to the weights of norms is taken off, and experts are read one by one. Nothing here is told
what was written: types and shapes are the file's, names and order follow from config.json.
"""

import hashlib
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float64, Shaped
from torch import Tensor
from transformers import PreTrainedModel

from q2n.errors import InputError
from q2n.formats.gguf.architecture import Architecture, gguf_names, heads_of, is_norm
from q2n.formats.gguf.header import read_header
from q2n.formats.gguf.mixtures import held_together, stack_of
from q2n.formats.gguf.rope import rope_tensors
from q2n.formats.gguf.tensor_types import TensorType, decode
from q2n.models.checkpoint_files import StoredTensors
from q2n.models.loading_plan import fused_parts
from q2n.option_types import shown

GGUF_FILE = "model.gguf"
"""The file in a checkpoint folder."""


class GGUFTensors(StoredTensors):
    """Under the names of the file in a folder.

    Raises:
        InputError: the file is missing or damaged.
    """

    def __init__(self, folder: Path):
        self.folder, self.file = folder, folder / GGUF_FILE
        header = read_header(self.file)
        self.architecture = header.entries.get("general.architecture")
        self._places = header.tensors
        self.file_of = dict.fromkeys(self._places, self.file)

    def shape(self, key: str) -> tuple[int, ...]:
        return self._places[key].shape

    def dtype(self, key: str) -> str:
        """Of what `tensor` gives: it rounds nothing."""
        return "F32"

    def size_bytes(self, key: str) -> int:
        return self._places[key].size_bytes

    def digest_and_extremes(self, file: Path) -> tuple[bytes, dict[str, Float64[Tensor, " 2"]]]:
        """The extremes of none: what is in blocks is looked at when it is read."""
        try:
            with file.open("rb") as stream:
                return hashlib.file_digest(stream, "sha256").digest(), {}
        except OSError as cause:
            raise InputError(f"{file} cannot be read ({cause}); fetch it again") from cause

    def tensor(self, key: str) -> Float[Tensor, "..."]:
        place = self._places[key]
        return self._read(place.start, place.kind, place.shape)

    def entry(self, key: str, index: int) -> Float[Tensor, "..."]:
        place = self._places[key]
        shape = place.shape[1:]
        return self._read(place.start + index * place.kind.size_bytes(shape), place.kind, shape)

    def _read(self, start: int, kind: TensorType, shape: tuple[int, ...]) -> Float[Tensor, "..."]:
        size = kind.size_bytes(shape)
        try:
            data = np.fromfile(self.file, np.uint8, size, offset=start)
        except OSError as cause:
            raise InputError(f"{self.file} cannot be read ({cause}); fetch it again") from cause
        if data.nbytes != size:
            raise InputError(f"{self.file} has become shorter; fetch it again")
        return decode(torch.from_numpy(data), kind, shape)


class ModelTensors(StoredTensors):
    """Under the names of the modules of `model`, experts one by one (models/experts.py). The model
    is as transformers builds it; its weights may be on the meta device.

    Raises:
        InputError: the file is that of another model.
    """

    def __init__(self, files: GGUFTensors, architecture: Architecture, model: PreTrainedModel):
        if files.architecture != architecture.name:
            raise InputError(
                f"{files.file} holds a {shown(files.architecture)} model, and config.json says "
                f"{model.config.model_type}; the two belong to different models"
            )
        self._files, self._architecture, self._config = files, architecture, model.config
        self.folder = files.folder
        known = gguf_names(architecture, model.config.num_hidden_layers, self._names(model))
        unknown = files.file_of.keys() - known.values() - rope_tensors(model.config).keys()
        if unknown:
            raise InputError(
                f"{files.file}: tensor {shown(min(unknown))} has no place in the model of "
                "config.json; the two belong to different models"
            )
        self._key_of = {name: key for name, key in known.items() if key in files.file_of}
        self._expert_of: dict[str, int] = {}
        for key, names in held_together(self._key_of).items():
            if stack_of(names[0]) is not None:
                self._require_experts(key, len(names))
                self._expert_of |= {name: place for place, name in enumerate(names)}
        self.file_of = dict.fromkeys(self._key_of, files.file)

    def _names(self, model: PreTrainedModel) -> list[str]:
        """Of all parameters that the file may hold."""
        fused, names = fused_parts(model), list[str]()
        for name, _ in model.named_parameters(remove_duplicate=False):
            names += fused.get(name, [name])
        if not self._architecture.own_head:
            names.remove("lm_head.weight")
        return names

    def _require_experts(self, key: str, count: int) -> None:
        shape = self._files.shape(key)
        if len(shape) != 3 or shape[0] != count:
            raise InputError(
                f"{self._files.file}: tensor {shown(key)} of shape {shape} does not hold the "
                f"{count} experts of config.json; the two belong to different models"
            )

    def shape(self, key: str) -> tuple[int, ...]:
        shape = self._files.shape(self._key_of[key])
        return shape[1:] if key in self._expert_of else shape

    def dtype(self, key: str) -> str:
        return self._files.dtype(self._key_of[key])

    def size_bytes(self, key: str) -> int:
        size = self._files.size_bytes(self._key_of[key])
        return size // self._files.shape(self._key_of[key])[0] if key in self._expert_of else size

    def digest_and_extremes(self, file: Path) -> tuple[bytes, dict[str, Float64[Tensor, " 2"]]]:
        return self._files.digest_and_extremes(file)

    def tensor(self, key: str) -> Float[Tensor, "..."]:
        if key in self._expert_of:
            return self._files.entry(self._key_of[key], self._expert_of[key])
        weight = self._files.tensor(self._key_of[key])
        heads = heads_of(self._architecture, self._config, key)
        if heads is not None:
            return apart(weight, heads)
        return weight - self._architecture.norm_offset if is_norm(key) else weight


def interleaved(rows: Shaped[Tensor, "..."], heads: int) -> Shaped[Tensor, "..."]:
    """Rows i and i + n/2 of each head of n rows side by side; of a vector its numbers."""
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def apart(rows: Shaped[Tensor, "..."], heads: int) -> Shaped[Tensor, "..."]:
    """Inverse of `interleaved`."""
    return rows.reshape(heads, -1, 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)
