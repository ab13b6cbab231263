"""A Hugging Face folder: safetensors files, config.json, the tokenizer's files.

Written as a stream: the weight of a quantized linear is replaced by what the codec stores for it;
every other tensor (embeddings, norms, biases, an untied lm_head) is copied in the model's dtype.
Tensors keep the names of the original's files; config.json names modules as the model does.
What a reader must know of the layers is the folder's entry (hf_entry.py) in config.json.
It is read as a source of dense weights (quantized_source.py).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from q2n.formats.codec import Codec, PackedCodec
from q2n.formats.container import Container
from q2n.formats.folder_config import as_json, written_config
from q2n.formats.hf_entry import FolderEntry, PackedEntry
from q2n.formats.quantized_model import QuantizedModel
from q2n.formats.quantized_source import QuantizedSource
from q2n.formats.runtime import PARTS, RUNTIME
from q2n.formats.shards import SHARD_BYTES, ShardWriter, tensor_bytes
from q2n.formats.stored import StoredLayer
from q2n.models.config_file import quantization_config
from q2n.models.model_source import ModelSource


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

    @property
    def library(self) -> str:
        return self.entry.library

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
        config = written_config(source, model.skeleton)
        if quantization is not None:
            if source.runtime is not None:
                quantization[RUNTIME] = {PARTS: source.runtime.to_json()}
            config["quantization_config"] = quantization
            if self.entry.config_copy:
                copy = folder / self.entry.config_copy
                copy.write_text(json.dumps(quantization, indent=1) + "\n")
        (folder / "config.json").write_text(as_json(self.entry.completed(config)))

    def tensor_bytes(self, directory: Path) -> int:
        return tensor_bytes(directory)

    def recognizes(self, directory: Path) -> bool:
        described = quantization_config(directory)
        if described is None or not isinstance(self.entry, PackedEntry):
            return False
        return self.entry.describes(described)

    def open(
        self, folder: Path, codec: Codec, dtype: str, *, trust_remote_code: bool = False
    ) -> ModelSource:
        assert isinstance(self.entry, PackedEntry) and isinstance(codec, PackedCodec)
        return QuantizedSource(folder, self.entry, codec, dtype, trust_remote_code)
