"""Junctions: where a scale of a tensor's channels can move from what computes it to what reads it.

A junction is one tensor x of a block that linears to quantize read, with all its readers: these
linears, others that stay in full precision, routers, the first matrices of every expert. Its
*source* computes it and can give `x / s` in its place (rewrites/rewrite.py):

- a norm: its weight (and bias) divided by s; if it multiplies with 1 + weight, 1 + weight is;
- a linear before, from which only what commutes with s separates the readers (values in front of o,
  up in front of down): its last rows are divided. So a matrix of queries, keys and values, or of
  gate and up, will do too.

How junctions are found: junction_search.py.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from q2n.models.targets import targets_in


@dataclass(frozen=True)
class Source:
    """What computes a tensor and can divide its channels."""

    module: str
    """Name in the block."""
    kind: Literal["norm", "linear"]
    """A linear gives the tensor by its last rows."""
    offset: float = 0.0
    """What a norm adds to its weight before it multiplies."""


@dataclass(frozen=True)
class Junction:
    """One tensor of a block, by names in the block."""

    readers: tuple[str, ...]
    """Everything with a matrix [., width] that reads it, in call order."""
    width: int
    watched: str
    """The module that is called with the tensor or, with `expert`, that mixture's experts."""
    expert: int | None = None
    """The tensor is what this expert hands to its last matrix."""
    source: Source | None = None
    """None: no scale can move here."""

    @property
    def module(self) -> str:
        """The smallest module that holds all readers: an attention, an MLP; "" is the block."""
        parents = [name.split(".")[:-1] for name in self.readers]
        levels = takewhile(lambda names: len({*names}) == 1, zip(*parents, strict=False))
        return ".".join(names[0] for names in levels)

    def holdable(self, block: nn.Module, scale: Float[Tensor, " width"]) -> Float[Tensor, " width"]:
        """The scale that the division of a norm's weight comes to in the norm's dtype, so that norm
        and readers fit: a coarse one where 1 + w is near 0, for w has a step there that the sum has
        not."""
        assert self.source is not None
        if self.source.kind == "linear":
            return scale
        weight, offset = block.get_parameter(f"{self.source.module}.weight"), self.source.offset
        before = weight.float() + offset
        after = (before / scale - offset).to(weight.dtype).float() + offset
        held = before / after
        near = (held / scale - 1).abs() < 0.5  # not of a weight of 0
        return torch.where(near, held, scale)

    def scaled(
        self, block: nn.Module, scale: Float[Tensor, " width"]
    ) -> Iterator[tuple[str, Float[Tensor, "..."]]]:
        """Every parameter that changes when `scale` moves, by its name in the block, and its new
        value, in its own dtype."""
        assert self.source is not None
        yield from _divided(block, self.source, scale)
        targets = targets_in(block)
        for name in self.readers:
            weight = block.get_parameter(f"{name}.weight")
            transposed = name in targets and targets[name].transposed
            factor = scale.unsqueeze(1) if transposed else scale
            yield f"{name}.weight", (weight.float() * factor).to(weight.dtype)


def _divided(
    block: nn.Module, source: Source, scale: Float[Tensor, " width"]
) -> Iterator[tuple[str, Float[Tensor, "..."]]]:
    """The parameters of a source that gives x / s."""
    module = block.get_submodule(source.module)
    weight, bias = module.get_parameter("weight"), module._parameters.get("bias")
    if source.kind == "norm":
        new = (weight.float() + source.offset) / scale - source.offset
    else:
        target = targets_in(block)[source.module]
        rows = target.weight().clone()
        rows[-len(scale) :] /= scale.unsqueeze(1)
        new = target.stored(rows)
    yield f"{source.module}.weight", new.to(weight.dtype)
    if bias is not None:
        entries = bias.float().clone()
        entries[-len(scale) :] /= scale
        yield f"{source.module}.bias", entries.to(bias.dtype)
