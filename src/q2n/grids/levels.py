"""A layer on uneven levels whose scales can be tuned by gradient steps."""

from typing import Any

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn

from q2n.grids.centred import CentredLinear


def look_up(
    levels: Float[Tensor, " levels"], index: Integer[Tensor, "out m"]
) -> Float[Tensor, "out m"]:
    """`levels[index]`, which takes four times as long."""
    return levels.index_select(0, index.flatten().int()).view(index.shape)


class TunableLevels(nn.Module):
    """The tunable form of a layer of weights `scale * levels[index]`: its scales. Levels have no
    even steps that codes could move by: these stay."""

    code_change = None

    def __init__(
        self,
        layer: CentredLinear,
        levels: Float[Tensor, " levels"],
        index: Integer[Tensor, "out m"],
    ):
        super().__init__()
        self.layer, self.levels, self.index = layer, levels, index
        self.scale_change = nn.Parameter(torch.zeros_like(layer.scale, dtype=torch.float32))

    def weight(self, dtype: torch.dtype) -> Float[Tensor, "out m"]:
        """The dense weight, differentiable in the parameters."""
        return _Scaled.apply(self._scale().expand(len(self.index)), self.levels, self.index, dtype)

    @torch.no_grad()
    def hardened(self) -> CentredLinear:
        """The layer with the tuned scales."""
        return self.layer.with_scale(self._scale())

    def _scale(self) -> Float[Tensor, " scales"]:
        return self.layer.scale.float() * (1 + self.scale_change)


class _Scaled(torch.autograd.Function):
    """Levels by index times scale; keeps the indices alone for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, scale: Tensor, levels: Tensor, index: Tensor, dtype: torch.dtype
    ) -> Tensor:
        ctx.save_for_backward(levels, index)
        return (look_up(levels, index) * scale.unsqueeze(1)).to(dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        levels, index = ctx.saved_tensors
        units = look_up(levels, index)
        return (gradient * units).sum(1, dtype=torch.float32), None, None, None
