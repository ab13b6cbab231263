"""Where a model's original tensors come from: a checkpoint folder or a model in memory.

Nothing is unpickled and no code from a checkpoint runs unless `trust_remote_code` is given.
"""

import hashlib
from collections.abc import Mapping
from copy import deepcopy
from math import prod
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from q2n.errors import InputError
from q2n.models.auxiliary_files import read_auxiliary
from q2n.models.checkpoint_files import StoredTensors, TensorFiles, resolve_checkpoint
from q2n.models.checkpoint_tensors import CheckpointTensors
from q2n.models.dense_files import DenseFiles
from q2n.models.devices import DTYPES, dtype_of_run, parse_dtype
from q2n.models.dtypes import loaded_dtypes
from q2n.models.expert_parts import ExpertPart, single_keys
from q2n.models.experts import one_by_one
from q2n.models.model_source import ModelSource, assemble, config_bytes, require_finite
from q2n.models.object_source import ObjectSource
from q2n.models.one_pass import FLOATS
from q2n.models.published import original_config, reader_of
from q2n.models.skeleton import build_skeleton, stored_tensors
from q2n.models.ties import set_tied
from q2n.option_types import shown
from q2n.patterns import listed

__all__ = ["CheckpointSource", "ModelSource", "assemble", "open_source"]


def open_source(
    model: str | Path | PreTrainedModel,
    *,
    dtype: str = "auto",
    trust_remote_code: bool = False,
    revision: str | None = None,
    tokenizer: Any = None,
) -> ModelSource:
    """A source for a model object, a checkpoint folder, a packaged model or a hub name.

    `dtype` "auto" keeps the checkpoint's own, "half" too but for float32: bfloat16.
    `tokenizer` is that of a model object, which comes without; a folder has its own.

    Raises:
        InputError: no such model, or one that cannot be read safely.
    """
    if isinstance(model, PreTrainedModel):
        return ObjectSource(model, dtype, trust_remote_code, tokenizer)
    folder = resolve_checkpoint(str(model), revision, trust_remote_code=trust_remote_code)
    return CheckpointSource(folder, str(model), dtype, trust_remote_code)


class CheckpointSource(ModelSource):
    """A folder with config.json and safetensors, one file or a sharded index."""

    folder: Path

    def __init__(self, folder: Path, label: str, dtype: str, trust_remote_code: bool = False):
        self.folder, self.label, self.trust_remote_code = folder, label, trust_remote_code
        self.config = self._read_config()
        self._auxiliary = read_auxiliary(folder, trust_remote_code)
        files = self._open_files()
        self.dtype = self._resolve_dtype(dtype, files)
        model = self._modules()
        self._files = self._dense(files, model)
        self._tensors = CheckpointTensors(self._files, model)
        self._untied = self._tensors.differing_ties(self.dtype)
        if self._untied:
            self.config = set_tied(deepcopy(self.config), False)
            model = one_by_one(self._modules())
        self._own = dict(stored_tensors(model))
        self._dtypes = loaded_dtypes(model, self.dtype)
        self._key_of = self._source_keys()

    def skeleton(self) -> PreTrainedModel:
        return one_by_one(self._modules())

    def _modules(self) -> PreTrainedModel:
        """The skeleton as transformers builds it, without what runs beside the weights."""
        try:
            return build_skeleton(self.config, self.dtype, self.trust_remote_code)
        except InputError as cause:
            raise InputError(f"{self.folder}: {cause}") from cause

    def names(self) -> list[str]:
        return list(self._own)

    def source_key(self, name: str) -> str:
        return self._key_of.get(name, name)

    def tensor(self, name: str) -> Shaped[Tensor, "..."]:
        return self._tensors.tensor(name)

    def dtype_of(self, name: str) -> torch.dtype:
        return self._dtypes.get(name, self.dtype)

    @property
    def merges(self) -> Mapping[tuple[str, ...], tuple[str, ...]]:
        return self._tensors.merges

    @property
    def fused(self) -> Mapping[str, Mapping[str, ExpertPart]]:
        return self._tensors.fused

    @property
    def untaken(self) -> list[str]:
        return self._tensors.untaken

    def stored(self, key: str) -> Shaped[Tensor, "..."]:
        return self._files.tensor(key)

    def stored_size(self, key: str) -> tuple[int, int]:
        return prod(self._files.shape(key)), self._files.size_bytes(key)

    @property
    def notes(self) -> list[str]:
        notes = [] if self.trust_remote_code else self._auxiliary.notes(self.config)
        if isinstance(self._files, DenseFiles):
            kind, dtype = self._files.kind, str(self.dtype).removeprefix("torch.")
            notes.append(f"The original is in {kind}; it is read, run and counted in {dtype}")
        if not self._untied:
            return notes
        return [
            *notes,
            f"The files store {listed(self._untied)} with other values than the tensor to which "
            "config.json ties it: it is kept, as transformers keeps it, and the written "
            "config.json says tie_word_embeddings false",
        ]

    def digest(self) -> str:
        total = hashlib.sha256(config_bytes(self.config))
        dtypes = {
            key: dtype for name, dtype in self._dtypes.items() for key in self._tensors.keys(name)
        }
        for file in sorted(self._files.files):
            digest, extremes = self._files.digest_and_extremes(file)
            total.update(digest)
            for key, pair in extremes.items():
                dtype = dtypes.get(key) or FLOATS[self._files.dtype(key)]
                require_finite(f"{file}: tensor {key!r}", pair.to(dtype))
        return total.hexdigest()

    def size_bytes(self) -> int:
        taken = sum(
            tensor.numel() * self.written_dtype(name, tensor).itemsize
            for name, tensor in self._own.items()
        )
        return taken + sum(map(self._files.size_bytes, self.untaken))

    def save_auxiliary(self, directory: Path) -> None:
        self._auxiliary.write(directory)

    def _source_keys(self) -> dict[str, str]:
        """The model's names -> the files', where one tensor is one tensor. Of two tensors that the
        files hold as one, the first has its name."""
        together = {name for names in self.merges.values() for name in names}
        together |= {name for names in self.fused.values() for name in names}
        names = {
            self._tensors.keys(name)[0]: name
            for name in reversed(self._own)
            if name not in together
        }
        keys = {name: key for key, name in names.items()}
        return keys | single_keys(self.fused)

    def _read_config(self) -> PretrainedConfig:
        """The configuration, without what a plain model does not have."""
        return original_config(self.folder, self.trust_remote_code)

    def _open_files(self) -> StoredTensors:
        """What lies in the folder, as it is stored."""
        named = getattr(self.config, "transformers_weights", None)
        return TensorFiles(self.folder, None if named is None else str(named))

    def _dense(self, files: StoredTensors, model: PreTrainedModel) -> StoredTensors:
        """What the files hold of the model, as dense weights."""
        read = reader_of(self.folder)
        return files if read is None else read(files, self.dtype)

    def _resolve_dtype(self, dtype: str, files: StoredTensors) -> torch.dtype:
        if dtype not in ("auto", "half"):
            return parse_dtype(dtype)
        stored = self.config.dtype
        if stored is None:
            dtypes = map(files.dtype, files.file_of)
            stored = next((FLOATS[dtype] for dtype in dtypes if dtype in FLOATS), torch.float32)
        name = str(stored).removeprefix("torch.")
        if name not in DTYPES:
            raise InputError(
                f"{self.folder}: config.json has dtype {shown(name)}; say with --dtype which of "
                f"{', '.join(DTYPES)} to run and write the model in"
            )
        return dtype_of_run(dtype, DTYPES[name])
