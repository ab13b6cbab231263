"""Where a model's original tensors come from: a checkpoint folder or a model in memory.

A source names tensors as the model's own modules do and hands them out one by one in
their stored dtype, so that nobody ever needs the whole model. Nothing is unpickled and
no code from a checkpoint runs unless `trust_remote_code` is given.
"""

import hashlib
import json
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming, rename_source_key

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


class ModelSource(ABC):
    """Original tensors of a causal LM, by name."""

    label: str
    """What the user called the model."""
    config: PretrainedConfig
    dtype: torch.dtype
    """The dtype in which the model is run and written."""

    @abstractmethod
    def skeleton(self) -> PreTrainedModel:
        """The model's modules. Weights may lie on the meta device; buffers are real."""

    @abstractmethod
    def names(self) -> list[str]:
        """Names of all parameters and saved buffers; a tied tensor appears once."""

    @abstractmethod
    def tensor(self, name: str) -> Tensor:
        """One original tensor on the CPU, in its stored dtype.

        Raises:
            InputError: the checkpoint lacks it or cannot be read.
        """

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
        return ObjectSource(model)
    path = resolve_checkpoint(str(model), revision)
    return CheckpointSource(path, str(model), dtype, trust_remote_code)


def resolve_checkpoint(name: str, revision: str | None = None) -> Path:
    """The folder of a checkpoint: a path as it is, a packaged model, or a hub download.

    Raises:
        InputError: none of these.
    """
    path = Path(name)
    if path.is_dir():
        return path
    return packaged_checkpoint(name) or _download(name, revision)


def _download(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = ["*.safetensors", "*.json", *AUXILIARY_FILES]
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except (HFValidationError, LocalEntryNotFoundError, HfHubHTTPError, OSError) as cause:
        raise InputError(
            f"model {name!r} is neither a folder, nor a packaged model, nor could it be "
            f"downloaded ({type(cause).__name__}); give the path of a checkpoint folder"
        ) from cause


class CheckpointSource(ModelSource):
    """A folder with config.json and safetensors, one file or a sharded index."""

    def __init__(self, path: Path, label: str, dtype: str, trust_remote_code: bool = False):
        self.path, self.label, self.trust_remote_code = path, label, trust_remote_code
        try:
            self.config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
        except (OSError, ValueError) as cause:
            raise InputError(
                f"{path}: config.json cannot be read as a transformers model: {cause}"
            ) from cause
        if getattr(self.config, "quantization_config", None):
            raise InputError(f"{path} is quantized already; quantize the original checkpoint")
        self._file_of = tensor_files(path)
        self._open_file: tuple[Path, safe_open] | None = None
        self._key_of = self._match_names()
        self.dtype = self._resolve_dtype(dtype)

    def skeleton(self) -> PreTrainedModel:
        with init_empty_weights(include_buffers=False), _EmptyOnMeta():
            try:
                model = AutoModelForCausalLM.from_config(
                    self.config, trust_remote_code=self.trust_remote_code
                )
            except ValueError as cause:
                raise InputError(f"{self.path} is not a causal language model: {cause}") from cause
        model.tie_weights()
        return model.eval()

    def names(self) -> list[str]:
        return list(self._key_of)

    def tensor(self, name: str) -> Tensor:
        key = self._key_of[name]
        return self._handle(self._file_of[key]).get_tensor(key)

    def digest(self) -> str:
        total = hashlib.sha256(self.config.to_json_string().encode())
        for file in sorted(set(self._file_of.values())):
            with file.open("rb") as stream:
                total.update(hashlib.file_digest(stream, "sha256").digest())
        return total.hexdigest()

    def size_bytes(self) -> int:
        return (
            sum(
                _count(self._handle(self._file_of[key]).get_slice(key).get_shape())
                for key in self._key_of.values()
            )
            * torch.finfo(self.dtype).bits
            // 8
        )

    def save_auxiliary(self, directory: Path) -> None:
        for pattern in AUXILIARY_FILES:
            for file in sorted(self.path.glob(pattern)):
                shutil.copyfile(file, directory / file.name)

    def _handle(self, file: Path) -> safe_open:
        """One file is open at a time: an open file is mapped memory."""
        if self._open_file is None or self._open_file[0] != file:
            self._open_file = (file, open_tensors(file))
        return self._open_file[1]

    def _match_names(self) -> dict[str, str]:
        """The model's tensor names -> the file's: transformers has renamed some over time."""
        model = self.skeleton()
        names = [name for name, _ in _stored_tensors(model)]
        renamings = [
            rule for rule in get_model_conversion_mapping(model) if isinstance(rule, WeightRenaming)
        ]
        prefix, state = model.base_model_prefix, model.state_dict()
        key_of = {
            rename_source_key(key, renamings, [], prefix, state)[0]: key for key in self._file_of
        }
        for name in names:
            if name not in key_of:
                raise InputError(
                    f"{self.path}: the checkpoint has no tensor {name!r}, which "
                    f"{type(model).__name__} needs; is the download complete?"
                )
        return {name: key_of[name] for name in names}

    def _resolve_dtype(self, dtype: str) -> torch.dtype:
        if dtype != "auto":
            return parse_dtype(dtype)
        stored = self.config.dtype or self.tensor(self.names()[0]).dtype
        return stored if isinstance(stored, torch.dtype) else parse_dtype(str(stored))


class ObjectSource(ModelSource):
    """A transformers model in memory; it is read, never changed."""

    def __init__(self, model: PreTrainedModel):
        self.model, self.config, self.dtype = model, model.config, model.dtype
        self.label = model.config.name_or_path or type(model).__name__
        self._tensors = dict(_stored_tensors(model))

    def skeleton(self) -> PreTrainedModel:
        return self.model.eval()

    def names(self) -> list[str]:
        return list(self._tensors)

    def tensor(self, name: str) -> Tensor:
        return self._tensors[name].detach().cpu()

    def digest(self) -> str:
        total = hashlib.sha256(self.config.to_json_string().encode())
        for name in self.names():
            total.update(self.tensor(name).contiguous().view(torch.uint8).numpy().tobytes())
        return total.hexdigest()

    def size_bytes(self) -> int:
        return sum(tensor.numel() for tensor in self._tensors.values()) * (
            torch.finfo(self.dtype).bits // 8
        )

    def save_auxiliary(self, directory: Path) -> None:
        if self.model.generation_config is not None:
            self.model.generation_config.save_pretrained(directory)


def parse_dtype(name: str) -> torch.dtype:
    """float32, float16 or bfloat16 from its name."""
    known = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
    if name not in known:
        raise InputError(f"dtype {name!r} is not one of auto, {', '.join(known)}")
    return known[name]


def parse_device(name: str) -> torch.device:
    """A device that can be used now; "auto" is cuda where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as cause:
        raise InputError(f"device {name!r} cannot be used: {cause}") from cause


class _EmptyOnMeta(TorchFunctionMode):
    """`torch.empty` gives meta tensors: `init_empty_weights` alone drops each weight only after
    its memory was reserved, and the allocator keeps that."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        placed = {"device": "meta"} if func is torch.empty else {}
        return func(*args, **{**(kwargs or {}), **placed})


def _stored_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and persistent buffers; of tied parameters the first name only."""
    yield from model.named_parameters()
    saved = model.state_dict().keys()
    yield from ((name, buffer) for name, buffer in model.named_buffers() if name in saved)


def tensor_files(path: Path) -> dict[str, Path]:
    """Tensor name -> the file of a checkpoint folder that holds it.

    Raises:
        InputError: there are no safetensors, or the index names files that are not there.
    """
    index = path / "model.safetensors.index.json"
    if index.exists():
        weight_map = json.loads(index.read_text())["weight_map"]
        files = {key: path / file for key, file in weight_map.items()}
        missing = sorted({file.name for file in files.values() if not file.exists()})
        if missing:
            raise InputError(f"{path}: the index names files that are missing: {missing}")
        return files
    single = path / "model.safetensors"
    if not single.exists():
        raise InputError(
            f"{path} holds no model.safetensors and no model.safetensors.index.json; "
            "pickled checkpoints (.bin, .pt) are not read: convert them to safetensors first"
        )
    return dict.fromkeys(open_tensors(single).keys(), single)


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


def _count(shape: list[int]) -> int:
    return torch.Size(shape).numel()
