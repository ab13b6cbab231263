"""What the GGUF file of a model holds, known before any tensor is read.

A tensor of the model becomes one of the file: rows of a type, interleaved within heads where
llama.cpp wants them so; those of experts become stacks (mixtures.py). Rows move as they are, so
that blocks and scales move with them.
"""

from collections.abc import Collection, Mapping
from functools import cached_property
from math import prod
from pathlib import Path

from gguf import GGUFWriter
from jaxtyping import Shaped, UInt8
from torch import Tensor

from q2n.errors import InputError
from q2n.formats.gguf.added_words import blanks_notes, name_in_file
from q2n.formats.gguf.architecture import architecture_of, gguf_names, heads_of, is_norm
from q2n.formats.gguf.metadata import add_architecture, add_general
from q2n.formats.gguf.mixtures import held_together, require_whole_stacks, stack_of
from q2n.formats.gguf.outside import EMBEDDINGS, Outside
from q2n.formats.gguf.rope import length_notes, rope_tensors
from q2n.formats.gguf.supported import require_supported, window_notes
from q2n.formats.gguf.tensor_types import FLOATS, TensorType, encode
from q2n.formats.gguf.tensors import interleaved
from q2n.formats.gguf.vocabulary import Vocabulary, read_vocabulary
from q2n.models.full_precision import FullPrecision
from q2n.models.model_source import ModelSource
from q2n.patterns import listed


class FileLayout:
    """The file of one model, its embeddings and head in the type `outside`.

    Raises:
        InputError: llama.cpp has no place for the model or a part of it.
    """

    def __init__(self, source: ModelSource, outside: str):
        self.source, self.config = source, source.config
        self.architecture = architecture_of(source.config)
        require_supported(self.architecture, source.config)
        if source.merges or source.untaken:
            strangers = [*(key for keys in source.merges for key in keys), *source.untaken]
            raise InputError(
                f"a GGUF file has no place for {listed(strangers)}; use another --format"
            )
        self.names = gguf_names(self.architecture, source.config.num_hidden_layers, source.names())
        """Every tensor: name in the model -> name in the file."""
        self.members = held_together(self.names)
        """Name in the file -> names in the model, several of a stack."""
        self.outside = Outside.of(outside, source.dtype)
        self.factors = rope_tensors(source.config)
        """Tensors of the file that are none of the model's."""
        parameters = dict(source.skeleton().named_parameters())
        self._shapes = {name: tuple(parameters[name].shape) for name in self.names}

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of all tensors, by their names in the file, in its order."""
        own = {key: self._shape(names) for key, names in self.members.items()}
        return {name: tuple(x.shape) for name, x in self.factors.items()} | own

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """Of the model's tokenizer.

        Raises:
            InputError: llama.cpp has nothing like it.
        """
        return read_vocabulary(
            self.source.folder,
            self.config.vocab_size,
            trust_remote_code=self.source.trust_remote_code,
        )

    @property
    def notes(self) -> list[str]:
        """What a user must know of the file besides."""
        return [
            *window_notes(self.architecture, self.config),
            *length_notes(self.config),
            *([] if self.source.only_config else self._notes_of_words),
            *self.outside.notes(self._embeddings),
        ]

    @property
    def types_outside(self) -> str:
        """The types of all that is not quantized, in one sentence."""
        return self.outside.said(self._embeddings, routers=self.architecture.mixture is not None)

    def require_whole_stacks(self, left: Collection[str]) -> None:
        """Refuse a stack of experts of which some weights are quantized and others, those of the
        names in `left`, stay as they are.

        Raises:
            InputError: naming one of each.
        """
        require_whole_stacks(self.members, left)

    def describe(self, writer: GGUFWriter, weights: Mapping[TensorType, int]) -> None:
        """Write the entries of a file that holds so many weights of each type."""
        add_general(writer, name_in_file(self._name, self.vocabulary.added), weights)
        add_architecture(writer, self.architecture, self.config)
        self.vocabulary.add_to(writer)

    def kept(self, quantized: Collection[str]) -> FullPrecision:
        """What the file holds besides the weights of these names."""
        weights, bits, rounded = 0, 0, 0
        for name in self.names.keys() - quantized:
            kind, shape = self.kind(name), self._shapes[name]
            weights += prod(shape)
            bits += 8 * kind.size_bytes(shape)
            rounded += 0 if kind in FLOATS else prod(shape)
        return FullPrecision(weights, bits, rounded)

    def kind(self, name: str) -> TensorType:
        """The type of one of the model's tensors that is not quantized."""
        return self.outside.kind(self.names[name], self._shapes[name])

    def plain_rows(self, name: str, tensor: Shaped[Tensor, "..."]) -> UInt8[Tensor, "..."]:
        """One of the model's tensors as the file holds it.

        Raises:
            NumericalError: a number has no place in its type.
        """
        tensor = self.in_place(name, tensor)
        if is_norm(name):
            tensor = tensor.float() + self.architecture.norm_offset
        return encode(tensor, self.kind(name), name)

    def in_place(self, name: str, rows: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
        """Rows of one of the model's tensors, as numbers or as bytes, in the order of the file."""
        heads = heads_of(self.architecture, self.config, name)
        return rows if heads is None else interleaved(rows, heads)

    def _shape(self, names: list[str]) -> tuple[int, ...]:
        """Of the tensor that holds these of the model."""
        shape = self._shapes[names[0]]
        return shape if stack_of(names[0]) is None else (len(names), *shape)

    @property
    def _notes_of_words(self) -> list[str]:
        return [*self.vocabulary.notes, *blanks_notes(self._name, self.vocabulary.added)]

    @property
    def _name(self) -> str:
        """Of the model."""
        return Path(self.source.label).name

    @property
    def _embeddings(self) -> dict[str, tuple[int, ...]]:
        """Shapes of embeddings and, if it is another tensor, head."""
        return {name: self.shapes[name] for name in EMBEDDINGS if name in self.shapes}
