"""What one tensor-parallel rank keeps of a linear of the checkpoint, as a packed weight.

A rank has some rows (q_proj, gate_proj) or some columns (o_proj, down_proj). The layer is rebuilt,
its part taken (`QuantizedLinear.part`) and packed again, as if it had been stored so. Without
ranks the tensors of the file are taken as they are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn import functional

from q2n.errors import InputError
from q2n.formats.native import Native, rebuild, require_numbers, require_parts
from q2n.formats.packed_kinds import packed_weight
from q2n.formats.packed_weight import PackedWeight
from q2n.formats.stored import StoredLayer
from q2n.layers import REPRESENTATIONS
from q2n.layers.quantized import QuantizedLinear


@dataclass(frozen=True, kw_only=True)
class Share:
    """Of one rank."""

    outputs: Sequence[int]
    """Rows that the rank keeps of the linear; several numbers where the linear of the checkpoint is
    several for vLLM (Phi-3's qkv_proj), and each of these is divided."""
    inputs: int
    """Columns that it keeps."""
    rank: int = 0
    ranks: int = 1

    def rows(self, count: int) -> list[slice]:
        """Of a linear of `count` rows, for each of the outputs.

        Raises:
            InputError: they do not come out even.
        """
        if len(self.outputs) == 1:
            return [_piece(count, self.outputs[0], self.rank, self.ranks)]
        if sum(self.outputs) * self.ranks != count:
            raise InputError(f"{count} rows are not {self.ranks} times {tuple(self.outputs)}")
        starts = [sum(self.outputs[:i]) * self.ranks for i in range(len(self.outputs))]
        pairs = zip(starts, self.outputs, strict=True)
        return [slice(a + size * self.rank, a + size * (self.rank + 1)) for a, size in pairs]

    def columns(self, count: int) -> slice:
        """Of a linear of `count` columns."""
        return _piece(count, self.inputs, self.rank, self.ranks)


def _piece(count: int, size: int, rank: int, ranks: int) -> slice:
    """Rows of a key's heads may be fewer than ranks, which then share them."""
    pieces, rest = divmod(count, size)
    if rest or ranks % pieces:
        raise InputError(f"{count} rows or columns do not make parts of {size} for {ranks} ranks")
    first = rank * pieces // ranks * size
    return slice(first, first + size)


@dataclass(frozen=True, eq=False)
class Dense(PackedWeight):
    """A weight that is not packed: a linear that is not quantized, or without a kernel."""

    weight: Float[Tensor, "out in"]

    def product(
        self, x: Float[Tensor, "tokens in"], bias: Float[Tensor, " out"] | None
    ) -> Float[Tensor, "tokens out"]:
        """As `PackedWeight.product`."""
        return functional.linear(x, self.weight, None if bias is None else bias.to(x.dtype))


def require_divisible(name: str, stored: StoredLayer, ranks: int) -> None:
    """Refuse a representation that no part can be taken of, before anything is loaded.

    Raises:
        InputError: it is one.
    """
    if ranks > 1 and REPRESENTATIONS[stored.kind].part is QuantizedLinear.part:
        raise InputError(
            f"{name} is stored in a basis that mixes all of its rows and columns ({stored.kind}), "
            "so ranks cannot divide it; use --tensor-parallel-size 1, --pipeline-parallel-size, or "
            "quantize without --incoherence"
        )


def dense_share(weight: Float[Tensor, "out in"], share: Share) -> list[PackedWeight]:
    """Of a linear that is not quantized."""
    columns = share.columns(weight.shape[1])
    return [Dense(weight[rows, columns].contiguous()) for rows in share.rows(weight.shape[0])]


def packed_share(
    name: str,
    stored: StoredLayer,
    parts: Mapping[str, Shaped[Tensor, "..."]],
    share: Share,
    dtype: torch.dtype,
) -> list[PackedWeight]:
    """Of a quantized linear, from its tensors in the file, one for each of the share's outputs;
    one for all of them without ranks.

    Raises:
        InputError: the tensors are not what config.json says, or cannot be divided so.
    """
    require_parts(name, stored, {part: (tuple(x.shape), x.dtype) for part, x in parts.items()})
    require_numbers(name, stored, parts)
    if share.ranks == 1:
        return [_weight(stored, parts, dtype)]
    layer = rebuild(stored, parts)
    try:
        columns = share.columns(layer.shape[1])
        divided = [layer.part(rows, columns) for rows in share.rows(layer.shape[0])]
    except InputError as cause:
        raise InputError(
            f"{name} cannot be divided among {share.ranks} ranks: {cause}; use fewer"
        ) from cause
    return [
        _weight(StoredLayer.of(layer), Native().encode(name, layer, dtype), dtype)
        for layer in divided
    ]


def _weight(
    stored: StoredLayer, parts: Mapping[str, Shaped[Tensor, "..."]], dtype: torch.dtype
) -> PackedWeight:
    packed = packed_weight(stored, parts)
    return packed or Dense(rebuild(stored, parts).dequantize().to(dtype))
