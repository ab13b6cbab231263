"""A Hugging Face folder: safetensors files, config.json, the tokenizer's files.

Written as a stream: the weight of a quantized linear is replaced by what the codec stores for it;
with `tables` embeddings and head are rounded and stored so too (outside_tables.py); every other
tensor is copied in the model's dtype. Tensors keep the names of the original's files; config.json
names modules as the model does. What a reader must know of the layers is the folder's entry
(hf_entry.py) in config.json. It is read as a source of dense weights (quantized_source.py).
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from math import prod
from pathlib import Path
from typing import Self

from q2n.formats.codec import Codec, PackedCodec
from q2n.formats.container import Container
from q2n.formats.folder_config import as_json, written_config
from q2n.formats.fusing import Fusing
from q2n.formats.hf_entry import FolderEntry, PackedEntry
from q2n.formats.outside_tables import round_table, tables_of
from q2n.formats.quantized_model import QuantizedModel
from q2n.formats.quantized_source import QuantizedSource
from q2n.formats.shards import SHARD_BYTES, ShardWriter
from q2n.formats.stored import StoredLayer
from q2n.formats.table_grid import TableGrid
from q2n.layers.quantized import QuantizedLinear, StorageSpec
from q2n.models.checkpoint_files import TensorFiles
from q2n.models.config_file import quantization_config
from q2n.models.expert_parts import ExpertPart
from q2n.models.experts import routers
from q2n.models.full_precision import FullPrecision, full_precision
from q2n.models.model_source import ModelSource


@dataclass(frozen=True)
class HFFolder(Container):
    """What transformers, vLLM and the model hub take for a model."""

    entry: FolderEntry
    """How config.json describes the quantized layers."""
    shard_bytes: int = SHARD_BYTES
    """Tensors of one file, and of what waits on the disk while it is written."""
    tables: TableGrid | None = None
    """The grid of embeddings and head; None: they are copied."""

    @property
    def tags(self) -> tuple[str, ...]:
        return (self.entry.quant_method,) if self.entry.quant_method else ()

    @property
    def library(self) -> str:
        return self.entry.library

    def loading_example(self, directory: Path) -> str:
        return self.entry.loading_example(directory)

    @property
    def outside_bits(self) -> tuple[int, ...]:
        return self.entry.outside_bits

    def with_outside_bits(self, bits: int) -> Self:
        return replace(self, tables=TableGrid(bits))

    def check(self, source: ModelSource, storage: StorageSpec) -> list[str]:
        self.entry.check_model(source.skeleton())
        if self.tables is not None:
            for name, shape in tables_of(source).items():
                self.entry.check_table(name, shape, self.tables)
        return super().check(source, storage)

    def check_experts(self, source: ModelSource, storage: StorageSpec, left: Sequence[str]) -> None:
        self.entry.check_experts(list(source.fused), storage, left)

    def outside_types(self, source: ModelSource) -> str:
        if self.tables is None:
            return super().outside_types(source)
        return (
            f"Embeddings and output head are in {self.tables.bits} bits, norms and biases are not "
            "quantized."
        )

    def kept(self, source: ModelSource, quantized: Collection[str]) -> FullPrecision:
        if self.tables is None:
            return super().kept(source, quantized)
        tables = tables_of(source)
        rest = full_precision(source, {*quantized, *tables})
        weights = sum(map(prod, tables.values()))
        of_group = self.entry.bits_of_group(self.tables, source.dtype)
        bits = sum(self.tables.bits_of(*shape, of_group) for shape in tables.values())
        return FullPrecision(rest.weights + weights, rest.bits + bits, weights)

    def write_into(self, folder: Path, model: QuantizedModel, codec: Codec) -> int:
        writer, stored = ShardWriter(folder, self.shard_bytes), {}
        in_parts = model.in_parts if self.entry.merges_parts else {}
        tables = {} if self.tables is None else tables_of(model.source)
        fusing = Fusing(self._fused(model))
        for name in model.source.names():
            if name in in_parts:
                for key in in_parts[name]:
                    writer.add(key, model.part(key, name))
                continue
            module = name.removesuffix(".weight")
            if name in model.replaced:
                layer = model.layers[module]
            elif module in tables:
                layer = self._rounded(name, model)
            else:
                fusing.add(writer, name, self._file_name(model, name), model.other_tensor(name))
                continue
            file_module = self._file_module(model, module)
            for part, value in codec.encode(module, layer, model.source.dtype).items():
                value = model.laid_out(module, part, value)
                fusing.add(writer, f"{module}.{part}", f"{file_module}.{part}", value)
            stored[module] = StoredLayer.of(layer)
        for key in model.source.untaken:
            writer.add(key, model.source.stored(key))
        writer.finish()
        copied = [*chain.from_iterable(in_parts.values()), *model.source.untaken]
        self._write_config(folder, model, stored, copied)
        model.source.save_auxiliary(folder)
        return writer.total_bytes

    def _size_bytes(self, model: QuantizedModel, codec: Codec) -> float:
        """A file's tensors are on the disk twice while it is written."""
        size = super()._size_bytes(model, codec)
        return size + min(size, self.shard_bytes)

    def _rounded(self, name: str, model: QuantizedModel) -> QuantizedLinear:
        assert self.tables is not None
        dtype = self.entry.table_dtype(model.source.dtype)
        return round_table(model.other_tensor(name), self.tables, dtype, name)

    def _file_name(self, model: QuantizedModel, name: str) -> str:
        """What the files call a tensor."""
        return name if self._as_model(model, name) else model.file_names[name]

    def _file_module(self, model: QuantizedModel, module: str) -> str:
        """Under which name the files hold the tensors of a linear."""
        as_model = self._as_model(model, f"{module}.weight")
        return module if as_model else model.file_module(module)

    def _fused(self, model: QuantizedModel) -> dict[str, Mapping[str, ExpertPart]]:
        """Tensors of several experts: name in the files -> names in the model. Beside packed layers
        transformers 5.23 merges no dense experts that lie one by one, so that those of a mixture
        without a quantized one are fused as its model has them."""
        found: dict[str, Mapping[str, ExpertPart]] = dict(model.source.fused)
        if self.entry.merges_experts:
            return found
        left = model.left_mixtures
        apart = {name for parts in left.values() for name in parts}
        if self.entry.single_experts == "as model":
            found = {key: parts for key, parts in found.items() if parts.keys() <= apart}
        known = {name for parts in found.values() for name in parts}
        return found | {key: parts for key, parts in left.items() if known.isdisjoint(parts)}

    def _as_model(self, model: QuantizedModel, name: str) -> bool:
        target = model.targets.get(name.rpartition(".")[0])
        return (
            self.entry.single_experts == "as model"
            and target is not None
            and target.experts is not None
        )

    def _modules(self, model: QuantizedModel, stored: Collection[str]) -> dict[str, str]:
        """Linears, routers and tables: name in the model -> name in the files. A head that is a
        rounded table has no name of its own."""
        names = dict.fromkeys([*model.targets, *sorted(routers(model.skeleton)), *stored])
        own = set(model.source.names())
        return {
            name: self._file_module(model, name)
            for name in names
            if self.tables is None or f"{name}.weight" in own
        }

    def _write_config(
        self,
        folder: Path,
        model: QuantizedModel,
        stored: Mapping[str, StoredLayer],
        copied: list[str],
    ) -> None:
        source = model.source
        quantization = self.entry.quantization_config(stored, self._modules(model, stored), copied)
        config = written_config(source, model.skeleton)
        if quantization is not None:
            quantization = self.entry.fitted(quantization, model.skeleton, stored)
            if source.runtime is not None:
                quantization |= self.entry.described_runtime(source.runtime.to_json())
            config["quantization_config"] = quantization
            if self.entry.config_copy:
                copy = folder / self.entry.config_copy
                copy.write_text(json.dumps(quantization, indent=1) + "\n")
        (folder / "config.json").write_text(as_json(self.entry.completed(config)))

    def tensor_bytes(self, directory: Path) -> int:
        files = TensorFiles(directory)
        return sum(map(files.size_bytes, files.file_of))

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
