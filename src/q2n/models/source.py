"""Where a model's original tensors come from: a checkpoint folder or a model in memory.

A source names tensors as the model's own modules do and hands them out one by one, so
that nobody ever needs the whole model. Nothing is unpickled and no code from a checkpoint
runs unless `trust_remote_code` is given.
"""

import hashlib
import json
import shutil
from abc import ABC, abstractmethod
from math import prod
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming, rename_source_key

from q2n.errors import InputError, NumericalError
from q2n.models.checkpoint_files import (
    TensorFiles,
    auxiliary_patterns,
    resolve_checkpoint,
)
from q2n.models.config_file import config_values, read_config
from q2n.models.devices import DTYPES, parse_dtype
from q2n.models.skeleton import build_skeleton, share_skeleton, stored_tensors
from q2n.option_types import shown
from q2n.transforms.runtime import RuntimeParts


class ModelSource(ABC):
    """Original tensors of a causal LM, by name."""

    label: str
    """What the user called the model."""
    config: PretrainedConfig
    dtype: torch.dtype
    """The dtype in which the model is run and written."""
    folder: Path | None = None
    """The checkpoint folder, if it comes from one."""
    runtime: RuntimeParts | None = None
    """What has to run beside the weights, if anything; `skeleton` has its rotations attached."""

    @abstractmethod
    def skeleton(self) -> PreTrainedModel:
        """The model's modules, the caller's to change, in evaluation mode. Weights may lie on
        the meta device or be a user's own tensors: replace them, never write into them."""

    @abstractmethod
    def names(self) -> list[str]:
        """Names of all parameters and saved buffers; a tied tensor appears once."""

    @abstractmethod
    def tensor(self, name: str) -> Shaped[Tensor, "..."]:
        """One original tensor on the CPU, in its stored dtype: a copy, the caller's to change.

        Raises:
            InputError: it cannot be read.
        """

    def in_model_dtype(self, name: str) -> Shaped[Tensor, "..."]:
        """One tensor on the CPU as the model is run and written: floating-point numbers in
        `dtype`, integers as they are.

        Raises:
            NumericalError: it is NaN or Inf in that dtype.
        """
        tensor = self.tensor(name)
        if not tensor.is_floating_point():
            return tensor
        tensor = tensor.to(self.dtype)
        if not torch.isfinite(tensor).all():
            raise NumericalError(
                f"{self.label}: tensor {name!r} has NaN or Inf in {self.dtype}; "
                "the checkpoint is damaged, or needs a wider --dtype"
            )
        return tensor

    @abstractmethod
    def digest(self) -> str:
        """SHA-256 of the configuration and every weight: what a resumed run must match."""

    @abstractmethod
    def size_bytes(self) -> int:
        """Bytes of all tensors in `dtype`."""

    @abstractmethod
    def save_auxiliary(self, directory: Path) -> None:
        """Write generation config and tokenizer, where there are any."""


def open_source(
    model: str | Path | PreTrainedModel,
    *,
    dtype: str = "auto",
    trust_remote_code: bool = False,
    revision: str | None = None,
) -> ModelSource:
    """A source for a model object, a checkpoint folder, a packaged model or a hub name.

    `dtype` "auto" keeps the checkpoint's own.

    Raises:
        InputError: no such model, or one that cannot be read safely.
    """
    if isinstance(model, PreTrainedModel):
        return ObjectSource(model, dtype)
    folder = resolve_checkpoint(str(model), revision, trust_remote_code=trust_remote_code)
    return CheckpointSource(folder, str(model), dtype, trust_remote_code)


class CheckpointSource(ModelSource):
    """A folder with config.json and safetensors, one file or a sharded index."""

    folder: Path

    def __init__(self, folder: Path, label: str, dtype: str, trust_remote_code: bool = False):
        self.folder, self.label, self.trust_remote_code = folder, label, trust_remote_code
        _refuse_quantized(folder, config_values(folder).get("quantization_config"))
        self.config = read_config(folder, trust_remote_code)
        self._files = TensorFiles(folder)
        self.dtype = self._resolve_dtype(dtype)
        self._key_of = self._match_names()

    def skeleton(self) -> PreTrainedModel:
        try:
            return build_skeleton(self.config, self.dtype, self.trust_remote_code)
        except InputError as cause:
            raise InputError(f"{self.folder}: {cause}") from cause

    def names(self) -> list[str]:
        return list(self._key_of)

    def tensor(self, name: str) -> Shaped[Tensor, "..."]:
        return self._files.tensor(self._key_of[name])

    def digest(self) -> str:
        total = hashlib.sha256(_config_bytes(self.config))
        for file in sorted(set(self._files.file_of.values())):
            with file.open("rb") as stream:
                total.update(hashlib.file_digest(stream, "sha256").digest())
        return total.hexdigest()

    def size_bytes(self) -> int:
        numbers = sum(prod(self._files.shape(key)) for key in self._key_of.values())
        return numbers * self.dtype.itemsize

    def save_auxiliary(self, directory: Path) -> None:
        for pattern in auxiliary_patterns(self.trust_remote_code):
            for file in sorted(self.folder.glob(pattern)):
                shutil.copyfile(file, directory / file.name)

    def _match_names(self) -> dict[str, str]:
        """The model's tensor names -> the file's: transformers has renamed some over time."""
        model = self.skeleton()
        renamings = [
            rule for rule in get_model_conversion_mapping(model) if isinstance(rule, WeightRenaming)
        ]
        prefix, state = model.base_model_prefix, model.state_dict()
        renamed = {
            rename_source_key(key, renamings, [], prefix, state)[0]: key
            for key in self._files.file_of
        }
        key_of: dict[str, str] = {}
        for name, tensor in stored_tensors(model):
            if name not in renamed:
                raise InputError(
                    f"{self.folder}: the checkpoint has no tensor {name!r}, which "
                    f"{type(model).__name__} needs; is the download complete?"
                )
            key_of[name] = renamed[name]
            self._require_shape(renamed[name], tuple(tensor.shape))
        return key_of

    def _require_shape(self, key: str, expected: tuple[int, ...]) -> None:
        shape = self._files.shape(key)
        if shape != expected:
            raise InputError(
                f"{self._files.file_of[key]}: tensor {key!r} has shape {shape}, and config.json "
                f"asks for {expected}; the two belong to different models"
            )

    def _resolve_dtype(self, dtype: str) -> torch.dtype:
        if dtype != "auto":
            return parse_dtype(dtype)
        stored = self.config.dtype
        if stored is None:
            tensors = map(self._files.tensor, self._files.file_of)
            floating = (tensor.dtype for tensor in tensors if tensor.is_floating_point())
            stored = next(floating, torch.float32)
        name = str(stored).removeprefix("torch.")
        if name not in DTYPES:
            raise InputError(
                f"{self.folder}: config.json has dtype {shown(name)}; say with --dtype which of "
                f"{', '.join(DTYPES)} to run and write the model in"
            )
        return DTYPES[name]


def _refuse_quantized(folder: Path, quantization: Any) -> None:
    """Refuse a checkpoint whose config.json has anything to say of its quantization."""
    if quantization is None:
        return
    method = quantization.get("quant_method") if isinstance(quantization, dict) else None
    how = f" ({shown(method)})" if method else ""
    raise InputError(
        f"{folder} is quantized already{how}: config.json has a quantization_config; quantize the "
        "original checkpoint"
    )


class ObjectSource(ModelSource):
    """A transformers model in memory; it is read, never changed."""

    def __init__(self, model: PreTrainedModel, dtype: str = "auto"):
        self.model, self.config = model, model.config
        self.dtype = model.dtype if dtype == "auto" else parse_dtype(dtype)
        self.label = model.config.name_or_path or type(model).__name__
        self._tensors = dict(stored_tensors(model))
        for name, tensor in self._tensors.items():
            if tensor.is_meta:
                raise InputError(
                    f"{self.label}: weight {name!r} is not in memory (meta device, or offloaded); "
                    "load the whole model, or give its checkpoint folder instead"
                )

    def skeleton(self) -> PreTrainedModel:
        return share_skeleton(self.model)

    def names(self) -> list[str]:
        return list(self._tensors)

    def tensor(self, name: str) -> Shaped[Tensor, "..."]:
        return self._tensors[name].detach().to("cpu", copy=True)

    def digest(self) -> str:
        total = hashlib.sha256(_config_bytes(self.config))
        for name, original in self._tensors.items():
            total.update(f"{name} {original.dtype} {tuple(original.shape)}".encode())
            values = original.detach().cpu().contiguous().reshape(-1)
            total.update(values.view(torch.uint8).numpy().data)
        return total.hexdigest()

    def size_bytes(self) -> int:
        numbers = sum(tensor.numel() for tensor in self._tensors.values())
        return numbers * self.dtype.itemsize

    def save_auxiliary(self, directory: Path) -> None:
        if self.model.generation_config is not None:
            self.model.generation_config.save_pretrained(directory)


def _config_bytes(config: PretrainedConfig) -> bytes:
    """The configuration without who wrote it and where it lay."""
    values = json.loads(config.to_json_string())
    for key in ("transformers_version", "_name_or_path"):
        values.pop(key, None)
    return json.dumps(values, sort_keys=True).encode()


def assemble(source: ModelSource, device: str | torch.device = "cpu") -> PreTrainedModel:
    """The source's model, its rotations attached, its activations and cache not rounded."""
    model = source.skeleton()
    state = {name: source.in_model_dtype(name) for name in source.names()}
    model.load_state_dict(state, strict=False, assign=True)
    if model.config.get_text_config().tie_word_embeddings:
        model.tie_weights()
    return model.to(device).eval().requires_grad_(False)  # type: ignore[arg-type]
