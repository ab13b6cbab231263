"""vLLM's embedding table and head, looked up and multiplied in a packed table.

A tied head is the table itself: what vLLM asks of the head, the method of the table answers.
Without tensor-parallel ranks only: vLLM gives a rank rows of a vocabulary that it has filled up.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from vllm.forward_context import get_forward_context
from vllm.model_executor.layers.quantization.base_config import QuantizeMethodBase

from q2n.errors import InputError
from q2n.formats.packed_weight import InRows
from q2n.formats.stored import StoredLayer
from q2n.formats.vllm.linear import NativeLinear
from q2n.kernels.packed_table import rows_of_table
from q2n.kernels.packed_uniform import UniformRows


class NativeTable(NativeLinear):
    """Of an embedding or an untied head that is quantized."""

    def __init__(self, prefix: str, stored: StoredLayer):
        super().__init__(prefix, {prefix: stored})
        self.stored = stored

    def _outputs(self, sizes: Sequence[int], ranks: int) -> list[Sequence[int]]:
        """All rows: vLLM fills its vocabulary up to a multiple of 64, the table's is not.

        Raises:
            InputError: there are ranks.
        """
        if ranks != 1:
            raise InputError(
                f"{self.prefix} is stored in {self.stored.metadata['bits']} bits, which ranks do "
                "not divide; use --tensor-parallel-size 1, or quantize without --outside-bits"
            )
        return [self.stored.shape[:1]]

    def embedding(self, layer: nn.Module, ids: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch in"]:
        """The rows of these tokens."""
        if torch.compiler.is_compiling():
            return _operation(ids, self.prefix, self.stored.shape[1], self.dtype)
        return self.rows(ids)

    def rows(self, ids: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch in"]:
        """What `embedding` gives."""
        (weight,) = self.packed
        assert isinstance(weight, InRows) and isinstance(weight.rows, UniformRows)
        table, columns = weight.rows, self.stored.shape[1]
        rows = rows_of_table(
            ids.flatten(),
            table.codes,
            table.scale,
            table.zero,
            bits=table.bits,
            columns=columns,
            group_size=self.stored.metadata["group_size"],
        )
        return rows.to(self.dtype).view(*ids.shape, columns)


class TiedHead(QuantizeMethodBase):
    """Of a head without a tensor of its own, until it is tied."""

    def create_weights(self, layer: nn.Module, *weight_args: Any, **extra: Any) -> None:
        """Nothing."""

    def apply(self, layer: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        """Raises:
        InputError: the head was not tied.
        """
        raise InputError(
            "the checkpoint has a packed embedding and no head, and vLLM did not tie them; use "
            "transformers, or quantize without --outside-bits"
        )

    def tie_weights(self, layer: nn.Module, embed_tokens: nn.Module) -> nn.Module:
        """As vLLM calls it."""
        layer.quant_method = embed_tokens.quant_method
        return layer


@torch.library.custom_op("q2n::vllm_rows", mutates_args=())
def _operation(ids: Tensor, prefix: str, columns: int, dtype: torch.dtype) -> Tensor:
    """What `torch.compile` sees of a look-up."""
    return get_forward_context().no_compile_layers[prefix].quant_method.rows(ids)


@_operation.register_fake
def _(ids: Tensor, prefix: str, columns: int, dtype: torch.dtype) -> Tensor:
    return ids.new_empty(*ids.shape, columns, dtype=dtype)
