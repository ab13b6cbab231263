"""A Hugging Face folder: safetensors files, config.json, the tokenizer's files.

Written as a stream: the weight of a quantized linear is replaced by what the codec stores for it;
every other tensor (embeddings, norms, biases, an untied lm_head) is copied in the model's dtype.
Tensors keep the names of the original's files; config.json names modules as the model does.
What a reader must know of the layers is the folder's entry (hf_entry.py) in config.json.

The way back unpacks with the inverse of our own packer and shares no code with the packed-weight
readers of transformers, so agreement between the two says something.
"""

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor
from transformers import AutoConfig, GenerationConfig, PretrainedConfig, PreTrainedModel

from q2n.errors import InputError
from q2n.formats.codec import Codec, PackedCodec
from q2n.formats.container import Container
from q2n.formats.hf_entry import FolderEntry, PackedEntry
from q2n.formats.quantized_model import QuantizedModel
from q2n.formats.runtime import PARTS, RUNTIME, attach_runtime
from q2n.formats.shards import SHARD_BYTES, ShardWriter
from q2n.formats.stored import StoredLayer
from q2n.models.auxiliary_files import drop_code
from q2n.models.checkpoint_files import TensorFiles
from q2n.models.dtypes import loaded_dtypes
from q2n.models.loading_plan import plan_loading
from q2n.models.skeleton import build_skeleton
from q2n.models.tensor_names import names_in_model


@dataclass(frozen=True)
class HFFolder(Container):
    """What transformers, vLLM and the model hub take for a model."""

    entry: FolderEntry
    """How config.json describes the quantized layers."""
    shard_bytes: int = SHARD_BYTES
    """Tensors of one file, and so about half of the memory used."""

    @property
    def tags(self) -> tuple[str, ...]:
        return (self.entry.quant_method,) if self.entry.quant_method else ()

    def loading_example(self, directory: Path) -> str:
        return self.entry.loading_example(directory)

    def write_into(self, folder: Path, model: QuantizedModel, codec: Codec) -> int:
        writer, stored = ShardWriter(folder, self.shard_bytes), {}
        in_parts = model.in_parts if self.entry.merges_parts else {}
        for name in model.source.names():
            if name in in_parts:
                for key in in_parts[name]:
                    writer.add(key, model.part(key, name))
                continue
            if name not in model.replaced:
                writer.add(model.file_names[name], model.other_tensor(name))
                continue
            module = model.replaced[name]
            layer, file_module = model.layers[module], model.file_module(module)
            for part, value in codec.encode(module, layer, model.source.dtype).items():
                writer.add(f"{file_module}.{part}", model.laid_out(module, part, value))
            stored[module] = StoredLayer.of(layer)
        for key in model.source.untaken:
            writer.add(key, model.source.stored(key))
        writer.finish()
        copied = [*chain.from_iterable(in_parts.values()), *model.source.untaken]
        self._write_config(folder, model, stored, copied)
        model.source.save_auxiliary(folder)
        return writer.total_bytes

    def _write_config(
        self,
        folder: Path,
        model: QuantizedModel,
        stored: Mapping[str, StoredLayer],
        copied: list[str],
    ) -> None:
        source = model.source
        quantization = self.entry.quantization_config(stored, model.unquantized, copied)
        config = json.loads(source.config.to_json_string())
        config.pop("quantization_config", None)
        config.pop("transformers_weights", None)  # names a file of the original
        if not source.trust_remote_code:
            drop_code(config)
        config["architectures"] = [type(model.skeleton).__name__]
        config["dtype"] = str(source.dtype).removeprefix("torch.")
        if quantization is not None:
            if source.runtime is not None:
                quantization[RUNTIME] = {PARTS: source.runtime.to_json()}
            config["quantization_config"] = quantization
            if self.entry.config_copy:
                copy = folder / self.entry.config_copy
                copy.write_text(json.dumps(quantization, indent=1) + "\n")
        (folder / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")

    def recognizes(self, directory: Path) -> bool:
        method = (quantization_config(directory) or {}).get("quant_method")
        return method is not None and method == self.entry.quant_method

    def read(
        self,
        directory: Path,
        codec: Codec,
        dtype: torch.dtype | None,
        *,
        trust_remote_code: bool = False,
    ) -> PreTrainedModel:
        assert isinstance(self.entry, PackedEntry) and isinstance(codec, PackedCodec)
        quantization = quantization_config(directory)
        assert quantization is not None
        config = folder_config(directory, trust_remote_code)
        del config.quantization_config
        dtype = dtype or getattr(config, "dtype", None) or torch.float32
        model = build_skeleton(config, dtype, trust_remote_code)
        tensors = _dense_tensors(
            TensorFiles(directory), model, self.entry, codec, quantization, dtype
        )
        _fill(model, dict(tensors), dtype, directory)
        attach_runtime(model, quantization.get(RUNTIME, {}))
        return model


def folder_config(directory: Path, trust_remote_code: bool = False) -> PretrainedConfig:
    """config.json of a folder.

    Raises:
        InputError: it is missing or damaged.
    """
    try:
        return AutoConfig.from_pretrained(directory, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as cause:
        raise InputError(
            f"config.json cannot be read: {cause}; fetch the checkpoint again"
        ) from cause


def quantization_config(directory: Path) -> dict[str, Any] | None:
    """The description of the quantized layers in config.json; None where there is none."""
    try:
        return json.loads((directory / "config.json").read_text()).get("quantization_config")
    except (OSError, ValueError, AttributeError):
        return None  # `folder_config` says what is wrong


def require_all(missing: Collection[str]) -> None:
    """Refuse a checkpoint without some of the model's tensors.

    Raises:
        InputError: the message names up to five.
    """
    if missing:
        raise InputError(f"tensors are missing: {sorted(missing)[:5]}; fetch the checkpoint again")


def _dense_tensors(
    files: TensorFiles,
    model: PreTrainedModel,
    entry: PackedEntry[Any],
    codec: PackedCodec[Any],
    quantization: Mapping[str, Any],
    dtype: torch.dtype,
) -> Iterator[tuple[str, Shaped[Tensor, "..."]]]:
    """Every tensor by its name in the files, the quantized linears as dense weights under the
    model's names."""
    names = names_in_model(model, files.file_of)
    key_of = {name: key for key, name in names.items()}
    packed = entry.packed_layers(key_of, quantization)
    stored: set[str] = set()
    for module, layer in packed.items():  # in the order of the files: one is open at a time
        own = {part: f"{module}.{part}" for part in layer.parts}
        parts = {part: files.tensor(key_of[name]) for part, name in own.items() if name in key_of}
        yield f"{module}.weight", codec.decode(module, parts, layer.description).to(dtype)
        stored.update(own.values())
    for key, name in names.items():
        if name not in stored:
            yield key, files.tensor(key)


def _fill(
    model: PreTrainedModel,
    tensors: dict[str, Shaped[Tensor, "..."]],
    dtype: torch.dtype,
    directory: Path,
) -> None:
    """Put tensors, by their names in the files, into the modules as transformers does."""
    state, dtypes = plan_loading(model, tensors).state(tensors), loaded_dtypes(model, dtype)
    state |= {name: state[name].to(dtypes[name]) for name in state.keys() & dtypes.keys()}
    missing = model.state_dict().keys() - state.keys()
    model.load_state_dict(state, strict=False, assign=True)
    model.tie_weights(missing_keys=missing, recompute_mapping=False)
    if (directory / "generation_config.json").exists():
        model.generation_config = GenerationConfig.from_pretrained(directory)
    require_all([name for name, tensor in model.named_parameters() if tensor.is_meta])
