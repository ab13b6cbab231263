r"""Losses of a model's next-token distributions s, from the states that its head reads.

    divergence      KL(p | s) = sum_v p_v (log p_v - log s_v), p a teacher's distribution
    cross_entropy   -log s_v, v the token that comes

Both are means over tokens. The logits of a few tokens are held at a time, and their gradient is
taken at once: with respect to logits it is s - p, p = 1 at the token that comes in the second. The
head (models/head.py) leads it back to the states, through what the model does to its logits, a
scaling or a cap. Its products are in the dtype of the autocast around it.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from q2n.models.head import Logits, States, states_in
from q2n.refit.descent import in_fast_dtype

_CHUNK = 256
"""Tokens whose logits are held at once."""

Head = Callable[[States], Logits]


def divergence(states: States, teacher: States, head: Head) -> Float[Tensor, ""]:
    """Mean KL divergence from the distributions of the teacher's states."""

    def part(log_s: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        log_p = head(teacher[rows]).float().log_softmax(1)
        p = log_p.exp()
        return ((log_p - log_s) * p).sum(dtype=torch.float64), log_s.exp_() - p

    return _Mean.apply(states, head, part)


def cross_entropy(
    states: States, following: Int[Tensor, " tokens"], head: Head
) -> Float[Tensor, ""]:
    """Mean of -log s of the tokens that follow."""

    def part(log_s: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        tokens = following[rows, None]
        loss = -log_s.gather(1, tokens).sum(dtype=torch.float64)
        slope = log_s.exp_()
        return loss, slope.scatter_add_(1, tokens, -torch.ones_like(slope[:, :1]))

    return _Mean.apply(states, head, part)


@torch.no_grad()
def states_of(
    body: nn.Module, tokens: Int[Tensor, "windows length"], windows: set[int]
) -> dict[int, Float[Tensor, "length hidden"]]:
    """What the head reads of some windows: far smaller than the logits."""
    device, found = next(body.parameters()).device, {}
    for window in sorted(windows):
        with in_fast_dtype(body):
            output = body(tokens[window].unsqueeze(0).to(device), use_cache=False)
        found[window] = states_in(output)[0].cpu()
    return found


class _Mean(torch.autograd.Function):
    """The mean of what `part` says of the log s of some tokens: their loss and its slope in the
    logits."""

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        head: Head,
        part: Callable[[Tensor, slice], tuple[Tensor, Tensor]],
    ) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        gradient = torch.empty_like(states, dtype=torch.float32)
        for a in range(0, len(states), _CHUNK):
            rows = slice(a, a + _CHUNK)
            some = states[rows].detach().requires_grad_()
            with torch.enable_grad():
                logits = head(some)
            loss, slope = part(logits.detach().float().log_softmax(1), rows)
            total += float(loss)
            [gradient[rows]] = torch.autograd.grad(logits, some, slope.to(logits.dtype))
        ctx.save_for_backward(gradient / len(states))
        return (total / len(states)).to(states.device, torch.float32)

    @staticmethod
    def backward(ctx: Any, above: Tensor) -> Any:
        return ctx.saved_tensors[0] * above, None, None
