"""An embedding table that stays packed: rows are unpacked for the tokens that ask for them.

Models have classes of their own for embeddings, most of which multiply the rows by a factor:
`super().forward(ids) * factor`. So an embedding is packed in its place, and gets a class that is
its own one with a `PackedEmbedding` where that expects `nn.Embedding`.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from q2n.formats.native import file_dtype, file_shape
from q2n.formats.stored import StoredLayer
from q2n.kernels.packed_table import rows_of_table
from q2n.layers.uniform import UniformLinear


class PackedEmbedding(nn.Embedding):
    """Its parameters are the tensors of the native layout, under their names there, like those of a
    `PackedLinear`; a tied head has the same ones."""

    stored: StoredLayer
    rows_dtype: torch.dtype
    """That of the model."""

    def forward(self, input: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch width"]:
        """The rows of these tokens, dequantized in float32 and rounded once."""
        facts, parts = self.stored.metadata, dict(self.named_parameters(recurse=False))
        rows = rows_of_table(
            input.flatten(),
            parts["codes"],
            parts["scale"],
            parts.get("zero"),
            bits=facts["bits"],
            columns=self.embedding_dim,
            group_size=facts["group_size"],
        )
        return rows.to(self.rows_dtype).view(*input.shape, self.embedding_dim)

    def __reduce__(self) -> tuple[Any, ...]:
        """Its class has no name to be found by."""
        return _made_again, (type(self).__mro__[1],), self.__dict__

    @property
    def weight(self) -> Float[Tensor, "words width"]:  # type: ignore[override]
        """Shape and dtype, for which models ask, without numbers."""
        shape = (self.num_embeddings, self.embedding_dim)
        return torch.empty(shape, dtype=self.rows_dtype, device="meta")


def _made_again(kind: type[nn.Embedding]) -> nn.Embedding:
    """A module of the class around `kind`, without anything in it."""
    packed = _packed(kind)
    return packed.__new__(packed)


def can_pack(stored: StoredLayer) -> bool:
    """Whether a table that is stored so can be looked up."""
    return stored.kind == UniformLinear.kind


def pack_embedding(module: nn.Embedding, stored: StoredLayer) -> PackedEmbedding:
    """The module itself, packed, its parameters on the meta device, to be loaded into."""
    dtype = module.weight.dtype
    del module._parameters["weight"]
    module.__class__ = _packed(type(module))
    assert isinstance(module, PackedEmbedding)
    module.stored, module.rows_dtype = stored, dtype
    for part, tensor in stored.tensors.items():
        empty = torch.empty(file_shape(tensor), dtype=file_dtype(tensor), device="meta")
        module.register_parameter(part, nn.Parameter(empty, requires_grad=False))
    return module


def _packed(kind: type[nn.Embedding]) -> type[nn.Embedding]:
    if kind is nn.Embedding:
        return PackedEmbedding
    return type(f"Packed{kind.__name__}", (kind, PackedEmbedding), {})
