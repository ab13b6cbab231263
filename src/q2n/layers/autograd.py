"""A layer on a uniform grid whose continuous parameters can be tuned by gradient steps.

The dense weight `scale * (code - zero)` is differentiable in the scales. The codes can take
part as well: a latent offset is added to each code before it is rounded, and the gradient
passes the rounding unchanged (the straight-through estimator). The offset starts at 0, the
middle of the code's own interval, so that a code moves only when many steps agree, and by one at
most.

Parameters are relative (a scale is its old value times 1 + change), which gives one learning rate
for all layers. `quantized` is the layer with what was learned, in its stored dtypes.

What moves codes and the two products with their gradients serve the other representations too.
"""

from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

if TYPE_CHECKING:
    pass


def latent(
    codes: UInt8[Tensor, "out in"], change: Float[Tensor, "out in"]
) -> Float[Tensor, "out in"]:
    """Codes moved by one at most, not yet whole."""
    return codes + change.clamp(-1, 1)


def rounded_codes(
    codes: UInt8[Tensor, "out in"], change: Float[Tensor, "out in"] | None, top: int
) -> UInt8[Tensor, "out in"]:
    """The codes that their changes lead to; the same ones if they take no part."""
    if change is None:
        return codes
    return latent(codes, change).round().clamp_(0, top).to(torch.uint8)


def scaled(
    steps: Int[Tensor, "out groups size"], scale: Float[Tensor, "out groups"], dtype: torch.dtype
) -> Float[Tensor, "out groups size"]:
    """Steps times scale, differentiable in the scale."""
    return _Scaled.apply(steps, scale, dtype)


def scaled_rounded(
    codes: Float[Tensor, "out groups size"],
    scale: Float[Tensor, "out groups"],
    zero: Tensor | float,
    top: int,
    dtype: torch.dtype,
) -> Float[Tensor, "out groups size"]:
    """`scale * (round(codes) in 0 .. top, less zero)`, differentiable in both."""
    return _ScaledRounded.apply(codes, scale, zero, top, dtype)


class _Scaled(torch.autograd.Function):
    """Steps times scale; keeps a byte a weight (two of 8 bits) for the backward pass."""

    @staticmethod
    def forward(ctx: Any, steps: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(steps)
        return steps.to(dtype) * scale.to(dtype).unsqueeze(2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        (steps,) = ctx.saved_tensors
        return None, _by_group(gradient, steps), None


class _ScaledRounded(torch.autograd.Function):
    """Rounded latent codes, less the zero point, times scale; straight-through backwards."""

    @staticmethod
    def forward(
        ctx: Any,
        codes: Tensor,
        scale: Tensor,
        zero: Tensor | float,
        top: int,
        dtype: torch.dtype,
    ) -> Tensor:
        steps = codes.round().clamp_(0, top).sub_(zero).to(dtype)
        ctx.save_for_backward(steps, scale)
        return steps * scale.to(dtype).unsqueeze(2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        steps, scale = ctx.saved_tensors
        return gradient * scale.unsqueeze(2), _by_group(gradient, steps), None, None, None


def _by_group(gradient: Tensor, steps: Tensor) -> Float[Tensor, "out groups"]:
    return (gradient * steps).sum(2, dtype=torch.float32)
