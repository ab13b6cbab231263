"""A layer on uneven levels whose scales can be tuned by gradient steps."""

from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int16, Integer
from torch import Tensor, nn

from q2n.layers.centred import CentredLinear
from q2n.linalg import lloyd_max, trellis_code


def look_up(
    levels: Float[Tensor, " levels"], index: Integer[Tensor, "out in"]
) -> Float[Tensor, "out in"]:
    """`levels[index]`, which takes four times as long."""
    return levels.index_select(0, index.flatten().int()).view(index.shape)


class TrainableLevels(nn.Module):
    """The trainable form of a layer of weights `scale * levels[index]`: its scales. Levels have no
    even steps that codes could move by: these stay."""

    code_change = None

    def __init__(
        self,
        layer: CentredLinear,
        levels: Float[Tensor, " levels"],
        index: Integer[Tensor, "out in"],
    ):
        super().__init__()
        self.layer, self.levels, self.index = layer, levels, index
        self.scale_change = nn.Parameter(torch.zeros_like(layer.scale, dtype=torch.float32))

    def weight(self, dtype: torch.dtype) -> Float[Tensor, "out in"]:
        """The dense weight, differentiable in the parameters."""
        return _Scaled.apply(self._scale().expand(len(self.index)), self.levels, self.index, dtype)

    @torch.no_grad()
    def quantized(self) -> CentredLinear:
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


class LloydMaxLinear(CentredLinear):
    """Lloyd-Max levels of a Gaussian times a scale, one scale a matrix or row."""

    kind: ClassVar[str] = "lloyd-max"

    def dequantize(self) -> Float[Tensor, "out in"]:
        return look_up(self.levels, self.codes) * self.scale.float()[:, None]

    @property
    def levels(self) -> Float[Tensor, " entries"]:
        """In units of the scale, which is the outermost."""
        return (lloyd_max.levels(self.bits) / lloyd_max.outermost(self.bits)).to(
            self.scale.device, torch.float32
        )

    def trainable(self, *, rounding: bool) -> TrainableLevels:
        return TrainableLevels(self, self.levels, self.codes)


class TrellisLinear(CentredLinear):
    """Trellis codes of Gaussian values times a scale, one scale a matrix or row."""

    kind: ClassVar[str] = "trellis"

    def dequantize(self) -> Float[Tensor, "out in"]:
        return look_up(self._values(), self._states()) * self.scale.float()[:, None]

    def trainable(self, *, rounding: bool) -> TrainableLevels:
        return TrainableLevels(self, self._values(), self._states())

    def _states(self) -> Int16[Tensor, "out in"]:
        return trellis_code.states(self.codes, self.bits)

    def _values(self) -> Float[Tensor, " states"]:
        """In units of the scale, the root mean square."""
        return trellis_code.values(self.bits).to(self.scale.device)
