"""A checkpoint folder with one GGUF file, which is all that llama.cpp needs.

config.json and the tokenizer's files lie beside it: they say what q2n and people want to know of
the model, and with them the folder is read as any other (source.py).
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import torch
from jaxtyping import UInt8
from torch import Tensor

from q2n.block_types import BY_BITS
from q2n.errors import InputError
from q2n.formats.codec import Codec
from q2n.formats.container import Container
from q2n.formats.folder_config import as_json, written_config
from q2n.formats.gguf.header import read_header
from q2n.formats.gguf.layout import FileLayout
from q2n.formats.gguf.source import GGUFSource
from q2n.formats.gguf.stream import TensorStream
from q2n.formats.gguf.tensor_types import F32, TENSOR_TYPES, TensorType, encode, notes_of_age
from q2n.formats.gguf.tensors import GGUF_FILE
from q2n.formats.quantized_model import QuantizedModel
from q2n.formats.table_grid import WIDTHS
from q2n.layers.blocks import BlockLinear, BlockStorage
from q2n.layers.quantized import StorageSpec
from q2n.models.full_precision import FullPrecision
from q2n.models.model_source import ModelSource
from q2n.patterns import listed


@dataclass(frozen=True)
class GGUFFile(Container):
    """What llama.cpp, Ollama and LM Studio take for a model."""

    language = "sh"
    outside: str = "q8_0"
    """The type of embeddings and head, as the option calls it."""

    @property
    def tags(self) -> tuple[str, ...]:
        return ("gguf", "llama.cpp")

    def loading_example(self, directory: Path) -> str:
        return f"llama-cli -m {directory / GGUF_FILE} -p 'The meaning of life is'\n"

    def storing_outside(self, name: str) -> Self:
        return replace(self, outside=name)

    @property
    def outside_bits(self) -> tuple[int, ...]:
        return WIDTHS

    def with_outside_bits(self, bits: int) -> Self:
        return self.storing_outside(BY_BITS[bits])

    def check(self, source: ModelSource, storage: StorageSpec) -> list[str]:
        assert isinstance(storage, BlockStorage)  # the codec holds no other
        young = notes_of_age([storage.block_type, self.outside])
        return [*FileLayout(source, self.outside).notes, *young]

    def check_experts(self, source: ModelSource, storage: StorageSpec, left: Sequence[str]) -> None:
        weights = {f"{name}.weight" for name in left}
        FileLayout(source, self.outside).require_whole_stacks(weights)

    def outside_types(self, source: ModelSource) -> str:
        return FileLayout(source, self.outside).types_outside

    def kept(self, source: ModelSource, quantized: Collection[str]) -> FullPrecision:
        weights = {f"{name}.weight" for name in quantized}
        return FileLayout(source, self.outside).kept(weights)

    def write_into(self, folder: Path, model: QuantizedModel, codec: Codec) -> int:
        layout = FileLayout(model.source, self.outside)
        layout.require_whole_stacks(layout.names.keys() - model.replaced)
        with TensorStream(
            folder / GGUF_FILE, layout.architecture.name, layout.describe, layout.shapes
        ) as stream:
            for name, factors in layout.factors.items():
                stream.add(name, F32, encode(factors, F32, name))
            for key, names in layout.members.items():
                stream.add(key, *_together(names, layout, model, codec))
            stream.finish()
        (folder / "config.json").write_text(as_json(written_config(model.source, model.skeleton)))
        model.source.save_auxiliary(folder)
        return stream.total_bytes

    def recognizes(self, directory: Path) -> bool:
        return (directory / GGUF_FILE).is_file() and not any(directory.glob("*.safetensors*"))

    def open(
        self, folder: Path, codec: Codec, dtype: str, *, trust_remote_code: bool = False
    ) -> ModelSource:
        return GGUFSource(folder, dtype, trust_remote_code)

    def tensor_bytes(self, directory: Path) -> int:
        return sum(x.size_bytes for x in read_header(directory / GGUF_FILE).tensors.values())


def _together(
    names: Sequence[str], layout: FileLayout, model: QuantizedModel, codec: Codec
) -> tuple[TensorType, UInt8[Tensor, "..."]]:
    """What the file holds as one tensor.

    Raises:
        InputError: its parts are of several types.
    """
    kinds, rows = zip(*(_stored(name, layout, model, codec) for name in names), strict=True)
    if len(set(kinds)) > 1:
        raise InputError(
            f"a GGUF file holds {listed(names)} in one type, and they are in "
            f"{', '.join(sorted({kind.name for kind in kinds}))}; use another --format"
        )
    return kinds[0], rows[0] if len(rows) == 1 else torch.cat(rows)


def _stored(
    name: str, layout: FileLayout, model: QuantizedModel, codec: Codec
) -> tuple[TensorType, UInt8[Tensor, "..."]]:
    """One of the model's tensors as the file holds it."""
    if name not in model.replaced:
        return layout.kind(name), layout.plain_rows(name, model.other_tensor(name))
    module = model.replaced[name]
    layer = model.layers[module]
    (rows,) = codec.encode(module, layer, model.source.dtype).values()
    assert isinstance(layer, BlockLinear)  # the codec refuses any other
    return TENSOR_TYPES[layer.block_type], layout.in_place(name, rows)
