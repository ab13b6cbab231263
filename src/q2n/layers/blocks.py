"""A linear in ggml's blocks (block_types.py): what GGUF files hold of one.

    w = d l(code) [+ m]                    simple types
    w = d (s - s_0) l(code) [- m t]        types with scales of their own per block

d and m are free numbers of 16 bits per super-block, so a factor per row, and one per super-block,
goes into them; s and t stay.
"""

from collections.abc import Mapping, Set
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Float, Float16, UInt8
from torch import Tensor, nn

from q2n.block_types import BLOCK_TYPES, BlockType, BlockTypeName
from q2n.errors import InputError
from q2n.layers.autograd import scaled, take_levels, zero_change
from q2n.layers.fields import CodeBits, packed
from q2n.layers.quantized import QuantizedLinear, StorageSpec
from q2n.linalg.groups import groups_of_part, in_groups


@dataclass(frozen=True, kw_only=True)
class BlockStorage(StorageSpec):
    """What a method on a grid of blocks stores."""

    kind: str = "blocks"
    block_type: BlockTypeName
    """Of the layers whose rows are whole super-blocks."""


@dataclass(frozen=True, kw_only=True, eq=False)
class BlockLinear(QuantizedLinear):
    """ggml's blocks: codes, a small scale per block, d and m in float16 per super-block."""

    kind: ClassVar[str] = BlockStorage.kind

    codes: UInt8[Tensor, "out in"] = packed("bits")
    d: Float16[Tensor, "out supers"]
    m: Float16[Tensor, "out supers"] | None = None
    s: UInt8[Tensor, "out blocks"] | None = packed("scale_bits", default=None)
    t: UInt8[Tensor, "out blocks"] | None = packed("scale_bits", default=None)
    block_type: BlockTypeName
    bits: CodeBits
    """Of a code: the type's."""
    scale_bits: CodeBits | None = None
    """Of s and t: the type's."""

    @property
    def type(self) -> BlockType:
        """What the numbers mean."""
        return BLOCK_TYPES[self.block_type]

    def dequantize(self) -> Float[Tensor, "out in"]:
        levels = in_groups(take_levels(self._levels(), self.codes), self.type.block)
        dense = levels.mul_(self.steps().unsqueeze(2))
        minima = self.minima()
        if minima is not None:
            dense.add_(minima.unsqueeze(2))
        return dense.flatten(1)

    def steps(self) -> Float[Tensor, "out blocks"]:
        """What multiplies the levels of a block."""
        d = self._by_block(self.d.float())
        return d if self.s is None else d * (self.s.float() - self.type.scale_offset)

    def minima(self) -> Float[Tensor, "out blocks"] | None:
        """What is added to a block."""
        if self.m is None:
            return None
        m = self._by_block(self.m.float())
        return m if self.t is None else -(m * self.t.float())

    def scale_rows(self, alpha: Float[Tensor, " out"]) -> Self:
        return self.scale_groups(alpha.unsqueeze(1))

    @property
    def scale_group(self) -> int:
        return self.type.super_block

    def scale_groups(self, alpha: Float[Tensor, "out _"]) -> Self:
        def times(values: Float[Tensor, "out supers"]) -> Float16[Tensor, "out supers"]:
            return (values.float() * alpha.float()).half()

        return replace(self, d=times(self.d), m=None if self.m is None else times(self.m))

    def part(self, rows: slice, columns: slice) -> Self:
        size = self.type.super_block
        supers, _ = groups_of_part(columns, size)
        if (columns.stop - columns.start) % size:
            raise InputError(f"blocks of {size} columns cannot be cut at column {columns.stop}")
        share = size // self.type.block
        blocks = slice(supers.start * share, supers.stop * share)
        return replace(
            self,
            codes=self.codes[rows, columns],
            d=self.d[rows, supers],
            m=None if self.m is None else self.m[rows, supers],
            s=None if self.s is None else self.s[rows, blocks],
            t=None if self.t is None else self.t[rows, blocks],
        )

    def trainable(self, *, rounding: bool) -> "TrainableBlocks":
        return TrainableBlocks(self)

    @classmethod
    def fits(cls, sizes: Mapping[str, int], metadata: Mapping[str, Any], tensors: Set[str]) -> bool:
        kind = BLOCK_TYPES[metadata["block_type"]]
        parts = {"codes", "d"} | ({"m"} if kind.has_minimum else set())
        if kind.scale_bits is not None:
            parts |= {"s"} | ({"t"} if kind.has_minimum else set())
        supers, rest = divmod(sizes["in"], kind.super_block)
        return (
            rest == 0
            and sizes["supers"] == supers
            and sizes.get("blocks", sizes["in"] // kind.block) == sizes["in"] // kind.block
            and (metadata["bits"], metadata["scale_bits"]) == (kind.bits, kind.scale_bits)
            and tensors == parts
        )

    def _levels(self) -> Float[Tensor, " levels"]:
        return torch.tensor(self.type.levels, dtype=torch.float32, device=self.d.device)

    def _by_block(self, values: Float[Tensor, "out supers"]) -> Float[Tensor, "out blocks"]:
        return values.repeat_interleave(self.type.super_block // self.type.block, dim=1)


class TrainableBlocks(nn.Module):
    """The trainable form of a `BlockLinear`: d and m, changed alike or each for itself. The levels
    of IQ4 have no even steps, and no other codes are trained here: they stay."""

    code_change = None

    def __init__(self, layer: BlockLinear):
        super().__init__()
        self.layer = layer
        numbers = [layer.d] if layer.m is None else [layer.d, layer.m]
        self.scale_change = zero_change(torch.stack(numbers, -1))
        self._units = self._whole_units()

    def weight(self, dtype: torch.dtype) -> Float[Tensor, "out in"]:
        """The dense weight, differentiable in the parameters."""
        d, *m = self._numbers()
        if not m:
            return scaled(self._units, d, dtype).flatten(1)
        base = m[0]
        if self.layer.t is not None:
            minima = in_groups(self.layer.t, self._blocks).float() * -base.unsqueeze(2)
            base = minima.flatten(1)
        per_block = scaled(self._units, d, torch.float32).flatten(1)
        per_block = per_block.unflatten(1, (base.shape[1], -1))
        return (per_block + base.unsqueeze(2)).flatten(1).to(dtype)  # the sum is rounded once

    @torch.no_grad()
    def quantized(self) -> BlockLinear:
        """The layer with the tuned d and m."""
        d, *m = self._numbers()
        return replace(self.layer, d=d.half(), m=m[0].half() if m else None)

    @property
    def _blocks(self) -> int:
        """Of a super-block."""
        return self.layer.type.super_block // self.layer.type.block

    def _numbers(self) -> list[Float[Tensor, "out supers"]]:
        numbers = [self.layer.d] if self.layer.m is None else [self.layer.d, self.layer.m]
        return [x.float() * (1 + self.scale_change[..., i]) for i, x in enumerate(numbers)]

    @torch.no_grad()
    def _whole_units(self) -> Tensor:
        """What d multiplies, whole numbers: levels times scales."""
        layer = self.layer
        levels = torch.tensor(layer.type.levels, dtype=torch.int16, device=layer.d.device)
        units = in_groups(levels[layer.codes.int()], layer.type.block)
        if layer.s is not None:
            units = units * (layer.s.to(torch.int16) - layer.type.scale_offset).unsqueeze(2)
        return in_groups(units.flatten(1), layer.type.super_block)
