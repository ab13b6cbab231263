r"""What the trainable forms share: how gradients reach scales, codes and codebooks.

A trainable form computes the dense weight W of a layer so that it is differentiable in what is
stored. With g = dL/dW, the gradient at the weight:

- Scales. For the weights `W_j = s u_j` that share a scale s, with steps or levels u_j,

      dL/ds = sum_j g_j u_j.

- Codes. A latent change d_j is added to code c_j before rounding: `u_j = round(c_j + d_j) - z`.
  The rounding is passed unchanged (the straight-through estimator, Bengio et al. 2013):

      dL/dd_j = s g_j.

  d_j starts at 0, the middle of the code's own interval, and counts within [-1, 1]: a code moves
  only when many gradient steps agree, and by one at most.

- Ranges. A weight w is rounded in each step again: `u = clamp(round(w / s) + z) - z`. The scale
  moves the codes too, and the rounding is passed unchanged:

      dL/ds = sum_j g_j (u_j - w_j / s)     of the weights within the range; of the others g_j u_j.

  The zero point z is a constant.

- Codebooks. For `W_ij = B_i[c_ij]`,  `dL/dB_i[k] = sum of g_ij over the j with c_ij = k`.

- A basis. `W = U^T W' V diag(s)^-1` is linear: the gradient at W' is the adjoint map of g,
  `U (g diag(s)^-1) V^T`.

Scales are trained as relative changes (a scale is its old value times 1 + change), so that one
learning rate serves all layers. Torch would keep the float32 factors of every product for the
backward pass; the functions below keep a byte or two per weight.
"""

from typing import Any

import torch
from jaxtyping import Float, Int, Integer, Shaped, UInt8
from torch import Tensor, nn

from q2n.linalg.basis import Basis


def zero_change(values: Shaped[Tensor, "*shape"]) -> nn.Parameter:
    """A parameter of zeros in float32, one per entry of `values`, on their device."""
    return nn.Parameter(torch.zeros_like(values, dtype=torch.float32))


def latent(
    codes: UInt8[Tensor, "out in"], change: Float[Tensor, "out in"]
) -> Float[Tensor, "out in"]:
    """Codes plus their changes, by one at most; not yet rounded."""
    return codes + change.clamp(-1, 1)


def rounded_codes(
    codes: UInt8[Tensor, "out in"], change: Float[Tensor, "out in"] | None, top: int
) -> UInt8[Tensor, "out in"]:
    """The codes in 0 .. top that their changes lead to; the codes themselves without changes."""
    if change is None:
        return codes
    return latent(codes, change).round().clamp_(0, top).to(torch.uint8)


def scaled(
    steps: Int[Tensor, "out groups size"], scale: Float[Tensor, "out groups"], dtype: torch.dtype
) -> Float[Tensor, "out groups size"]:
    """`scale * steps`, differentiable in the scale."""
    return _Scaled.apply(steps, scale, dtype)


def scaled_rows(
    weight: Float[Tensor, "out in"], scale: Float[Tensor, " out"], dtype: torch.dtype
) -> Float[Tensor, "out in"]:
    """`scale * weight`, a factor per row of a weight that stays; differentiable in the scale."""
    return _Scaled.apply(weight.unsqueeze(1), scale.unsqueeze(1), dtype).squeeze(1)


def scaled_rounded(
    codes: Float[Tensor, "out groups size"],
    scale: Float[Tensor, "out groups"],
    zero: Int[Tensor, "out groups 1"] | float,
    top: int,
    dtype: torch.dtype,
) -> Float[Tensor, "out groups size"]:
    """`scale * (round(codes) - zero)`, the rounded codes in 0 .. top; differentiable in codes and
    scale."""
    return _ScaledRounded.apply(codes, scale, zero, top, dtype)


def rounded_in_range(
    weight: Float[Tensor, "out groups size"],
    scale: Float[Tensor, "out groups"],
    zero: Float[Tensor, "out groups"],
    top: int,
    dtype: torch.dtype,
) -> Float[Tensor, "out groups size"]:
    """The nearest `scale * (code - zero)`, codes 0 .. top; differentiable in the scale."""
    return _RoundedInRange.apply(weight, scale, zero, top, dtype)


def scaled_levels(
    scale: Float[Tensor, " out"],
    levels: Float[Tensor, " levels"],
    index: Integer[Tensor, "out in"],
    dtype: torch.dtype,
) -> Float[Tensor, "out in"]:
    """`scale * levels[index]`, differentiable in the scale."""
    return _ScaledLevels.apply(scale, levels, index, dtype)


def take_levels(
    levels: Float[Tensor, " levels"], index: Integer[Tensor, "out in"]
) -> Float[Tensor, "out in"]:
    """`levels[index]`, four times as fast as indexing."""
    return levels.index_select(0, index.flatten().int()).view(index.shape)


def codebook_entries(
    codebook: Float[Tensor, "out entries"], codes: UInt8[Tensor, "out in"], dtype: torch.dtype
) -> Float[Tensor, "out in"]:
    """The entry of each row's codebook that a code points to, differentiable in the entries."""
    return _CodebookEntries.apply(codebook, codes, dtype)


def rotated_back(weight: Float[Tensor, "out in"], basis: Basis) -> Float[Tensor, "out in"]:
    """`basis.weight_back`, differentiable in the weight."""
    return _RotatedBack.apply(weight, basis)


class _Scaled(torch.autograd.Function):
    """Keeps the steps: a byte per weight, two for steps of 8 bits. The product is rounded to the
    dtype once: a scale in bfloat16 has steps of 0.4 to 0.8 %, more than a gradient step."""

    @staticmethod
    def forward(ctx: Any, steps: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(steps)
        return (steps * scale.unsqueeze(2)).to(dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        (steps,) = ctx.saved_tensors
        return None, _by_group(gradient, steps), None


class _ScaledRounded(torch.autograd.Function):
    """Keeps the rounded steps in the dtype of the weight."""

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
        return (steps * scale.unsqueeze(2)).to(dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        steps, scale = ctx.saved_tensors
        return gradient * scale.unsqueeze(2), _by_group(gradient, steps), None, None, None


class _RoundedInRange(torch.autograd.Function):
    """Keeps what the scale is multiplied with in the derivative, in the dtype of the weight."""

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, scale: Tensor, zero: Tensor, top: int, dtype: torch.dtype
    ) -> Tensor:
        scale, zero = scale.unsqueeze(2), zero.unsqueeze(2)
        position = weight / scale
        code = position.round().add_(zero)
        outside = (code < 0) | (code > top)
        steps = code.clamp_(0, top).sub_(zero)
        ctx.save_for_backward((steps - position.masked_fill_(outside, 0)).to(dtype))
        return steps.mul_(scale).to(dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        (slope,) = ctx.saved_tensors
        return None, _by_group(gradient, slope), None, None, None


class _ScaledLevels(torch.autograd.Function):
    """Keeps the indices."""

    @staticmethod
    def forward(
        ctx: Any, scale: Tensor, levels: Tensor, index: Tensor, dtype: torch.dtype
    ) -> Tensor:
        ctx.save_for_backward(levels, index)
        return (take_levels(levels, index) * scale.unsqueeze(1)).to(dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        units = take_levels(*ctx.saved_tensors)
        return (gradient * units).sum(1, dtype=torch.float32), None, None, None


class _CodebookEntries(torch.autograd.Function):
    """Keeps the codes."""

    @staticmethod
    def forward(ctx: Any, codebook: Tensor, codes: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(codes)
        ctx.entries = codebook.shape[1]
        return codebook.to(dtype).gather(1, codes.to(torch.int64))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        (codes,) = ctx.saved_tensors
        sums = gradient.new_zeros(len(codes), ctx.entries, dtype=torch.float32)
        return sums.scatter_add_(1, codes.to(torch.int64), gradient.float()), None, None


class _RotatedBack(torch.autograd.Function):
    """Keeps nothing. The adjoint is what `basis.weight` computes of `g diag(s)^-2`."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, basis: Basis) -> Tensor:
        ctx.basis = basis
        return basis.weight_back(weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        s = ctx.basis.rescale
        return ctx.basis.weight(gradient if s is None else gradient / s.to(gradient) ** 2), None


def _by_group(gradient: Tensor, steps: Tensor) -> Float[Tensor, "out groups"]:
    return (gradient * steps).sum(2, dtype=torch.float32)
