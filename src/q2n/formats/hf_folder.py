"""A Hugging Face folder: safetensors files, config.json, the tokenizer's files.

Written as a stream: the weight of a quantized linear is replaced by what the codec stores for it;
every other tensor (embeddings, norms, biases, an untied lm_head) is copied in the model's dtype.
What a reader must know of the layers is the folder's entry (hf_entry.py) in config.json.

The way back unpacks with the inverse of our own packer and shares no code with the packed-weight
readers of transformers, so agreement between the two says something.
"""

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel

from q2n.errors import InputError
from q2n.formats.codec import Codec, PackedCodec
from q2n.formats.container import Container
from q2n.formats.hf_entry import FolderEntry, PackedEntry, refuse_undescribed
from q2n.formats.quantized_model import QuantizedModel
from q2n.formats.runtime import PARTS, RUNTIME, attach_runtime
from q2n.formats.shards import SHARD_BYTES, ShardWriter
from q2n.formats.stored import StoredLayer
from q2n.models.checkpoint_files import TensorFiles
from q2n.models.config_file import config_values, read_config
from q2n.models.skeleton import build_skeleton
from q2n.option_types import shown


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
        for name in model.source.names():
            if name not in model.replaced:
                writer.add(name, model.other_tensor(name))
                continue
            module = model.replaced[name]
            layer = model.layers[module]
            for part, value in codec.encode(module, layer, model.source.dtype).items():
                writer.add(f"{module}.{part}", model.laid_out(module, part, value))
            stored[module] = StoredLayer.of(layer)
        writer.finish()
        self._write_config(folder, model, stored)
        model.source.save_auxiliary(folder)
        return writer.total_bytes

    def _write_config(
        self, folder: Path, model: QuantizedModel, stored: Mapping[str, StoredLayer]
    ) -> None:
        source = model.source
        quantization = self.entry.quantization_config(stored, model.unquantized)
        config = json.loads(source.config.to_json_string())
        config.pop("quantization_config", None)
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
        config = read_config(directory, trust_remote_code)
        del config.quantization_config
        dtype = dtype or getattr(config, "dtype", None) or torch.float32
        files = TensorFiles(directory)
        tensors = dict(_dense_tensors(files, self.entry, codec, quantization, dtype))
        model, unknown = _assemble(directory, config, tensors, dtype, trust_remote_code)
        unused = self.entry.unused(quantization)
        if unused is not None:
            for key in set(unknown) - unused:
                refuse_undescribed(key)
        attach_runtime(model, quantization.get(RUNTIME, {}))
        return model


def quantization_config(directory: Path) -> Mapping[str, Any] | None:
    """The description of the quantized layers in config.json; None where there is none.

    Raises:
        InputError: config.json is missing or damaged, or the description is no object.
    """
    described = config_values(directory).get("quantization_config")
    if described is not None and not isinstance(described, dict):
        raise InputError(
            f"quantization_config in config.json is {shown(described)}; fetch the checkpoint again"
        )
    return described


def require_all(missing: Collection[str]) -> None:
    """Refuse a checkpoint without some of the model's tensors.

    Raises:
        InputError: the message names up to five.
    """
    if missing:
        raise InputError(f"tensors are missing: {sorted(missing)[:5]}; fetch the checkpoint again")


def _dense_tensors(
    files: TensorFiles,
    entry: PackedEntry[Any],
    codec: PackedCodec[Any],
    quantization: Mapping[str, Any],
    dtype: torch.dtype,
) -> Iterator[tuple[str, Shaped[Tensor, "..."]]]:
    """Every tensor of the model, the quantized linears as dense weights."""
    packed = entry.packed_layers(files.file_of, quantization)
    stored: set[str] = set()
    for module, layer in packed.items():  # in the order of the files: one is open at a time
        keys = {part: f"{module}.{part}" for part in layer.parts}
        parts = {part: files.tensor(key) for part, key in keys.items() if key in files.file_of}
        yield f"{module}.weight", codec.decode(module, parts, layer.description).to(dtype)
        stored.update(keys.values())
    for key in files.file_of:
        module, _, part = key.rpartition(".")
        if module in packed and key not in stored and part != "bias":
            refuse_undescribed(key)
        if key not in stored:
            tensor = files.tensor(key)
            yield key, tensor.to(dtype) if tensor.is_floating_point() else tensor


def _assemble(
    directory: Path,
    config: PretrainedConfig,
    tensors: dict[str, Shaped[Tensor, "..."]],
    dtype: torch.dtype,
    trust_remote_code: bool,
) -> tuple[PreTrainedModel, list[str]]:
    """A model from tensors under its own names, and those of which it has none."""
    model = build_skeleton(config, dtype, trust_remote_code)
    unknown = model.load_state_dict(tensors, strict=False, assign=True).unexpected_keys
    model.tie_weights()
    if (directory / "generation_config.json").exists():
        model.generation_config = GenerationConfig.from_pretrained(directory)
    require_all([name for name, tensor in model.named_parameters() if tensor.is_meta])
    return model, unknown
