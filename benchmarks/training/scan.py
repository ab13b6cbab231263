"""Mamba's selective scan for training on a CPU: transformers' numbers, by loops of numba.

Letters: B windows, L tokens, D channels, N states of a channel. A channel has the step s_t > 0, the
input u_t and the rates A_n < 0; all channels share B_t and C_t:

    h_tn = a_tn h_(t-1)n + s_t u_t B_tn,   a_tn = exp(s_t A_n),   y_t = sum_n C_tn h_tn.

Backwards, g_tn = C_tn dy_t + a_(t+1)n g_(t+1)n is the gradient of h_tn; those of B, C,
s, u and A follow token by token. transformers takes the tokens one at a time out of a tensor
[B, D, L, N]; the gradient of each is a tensor of zeros of this size, a cost of L^2.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import numba
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional
from transformers.models.mamba import modeling_mamba


@contextlib.contextmanager
def compiled_scan() -> Iterator[None]:
    """transformers' Mamba scans with the loops below, without a cache of states."""
    reference = modeling_mamba.mamba_selective_scan
    modeling_mamba.mamba_selective_scan = selective_scan
    try:
        yield
    finally:
        modeling_mamba.mamba_selective_scan = reference


def selective_scan(
    inputs: Float[Tensor, "B D L"],
    step: Float[Tensor, "B D L"],
    rates: Float[Tensor, "D N"],
    B: Float[Tensor, "B N L"],
    C: Float[Tensor, "B N L"],
    *,
    D: Float[Tensor, " D"],
    z: Float[Tensor, "B D L"],
    delta_bias: Float[Tensor, " D"],
    **_: Any,
) -> Float[Tensor, "B D L"]:
    """As `transformers.models.mamba.modeling_mamba.mamba_selective_scan` without a last state; the
    options that it ignores choose between kernels."""
    inputs, step, B, C = (x.float().transpose(1, 2).contiguous() for x in (inputs, step, B, C))
    step = functional.softplus(step + delta_bias)
    output = _Scan.apply(inputs, step, rates, B, C) + inputs * D
    return output.transpose(1, 2) * functional.silu(z)


class _Scan(torch.autograd.Function):
    """(u [B, L, D], s [B, L, D], A [D, N], B [B, L, N], C [B, L, N]) -> y [B, L, D], in float32."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, s: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
        a = torch.exp(s[..., None] * A)
        h, y = torch.empty_like(a), torch.empty_like(u)
        _forward(*(x.detach().numpy() for x in (u, s, a, B, C, h, y)))
        ctx.save_for_backward(u, s, A, B, C, a, h)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, ...]:
        gradients = [torch.zeros_like(x) for x in ctx.saved_tensors[:5]]
        saved = (x.detach().numpy() for x in ctx.saved_tensors)
        _backward(dy.contiguous().numpy(), *saved, *(x.numpy() for x in gradients))
        return tuple(gradients)


@numba.njit(fastmath=True)
def _forward(u, s, a, B, C, h, y):
    windows, tokens, channels, states = a.shape
    for w in range(windows):
        for t in range(tokens):
            for d in range(channels):
                entering, total = s[w, t, d] * u[w, t, d], a.dtype.type(0)
                for n in range(states):
                    state = entering * B[w, t, n]
                    if t > 0:
                        state += a[w, t, d, n] * h[w, t - 1, d, n]
                    h[w, t, d, n] = state
                    total += C[w, t, n] * state
                y[w, t, d] = total


@numba.njit(fastmath=True)
def _backward(dy, u, s, A, B, C, a, h, du, ds, dA, dB, dC):
    windows, tokens, channels, states = a.shape
    later = np.empty((channels, states), a.dtype)  # a_(t+1) g_(t+1)
    for w in range(windows):
        later[:] = 0
        for t in range(tokens - 1, -1, -1):
            for d in range(channels):
                entering = s[w, t, d] * u[w, t, d]
                of_entering, of_step = a.dtype.type(0), a.dtype.type(0)
                for n in range(states):
                    g = C[w, t, n] * dy[w, t, d] + later[d, n]
                    dC[w, t, n] += dy[w, t, d] * h[w, t, d, n]
                    dB[w, t, n] += entering * g
                    of_entering += g * B[w, t, n]
                    later[d, n] = g * a[w, t, d, n]
                    if t > 0:
                        of_exponent = later[d, n] * h[w, t - 1, d, n]
                        of_step += of_exponent * A[d, n]
                        dA[d, n] += of_exponent * s[w, t, d]
                du[w, t, d] = of_entering * s[w, t, d]
                ds[w, t, d] = of_entering * u[w, t, d] + of_step
