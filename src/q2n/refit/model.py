r"""Refit of the whole model: scales and norm weights toward the full-precision model's predictions.

The error of a block is not worth the same in every direction: what counts is what it does to
the predictions. With all codes fixed, the scales of all layers and the weights of all norms
are tuned to bring the next-token distributions s of the quantized model close to the p of the
full-precision model, averaged over the tokens of one calibration window per step:

    KL(p | s) = sum_v p_v (log p_v - log s_v),     d KL / d logits = s - p.

Training scales alone, end to end, is the second phase of EfficientQAT (Chen et al. 2024); here
the teacher's distribution takes the place of the next token. It sees across blocks, so it wins
more per second than refitting block by block (docs/LOG.md). The price is memory: the whole model,
a byte for each quantized weight (a few of a partly binary layer), and the dense weights and
activations of one window.
"""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from q2n.layers.quantized import QuantizedLinear
from q2n.refit.descent import Call, in_fast_dtype
from q2n.refit.tuner import Rates, Refit, Tuned, shuffled, tune

_CHUNK = 256
"""Tokens whose logits are held at once."""


@dataclass(frozen=True, kw_only=True)
class ModelRefit(Refit):
    """How the model is refitted."""

    rates: Rates = Rates(scale=0.003, norm=0.01)

    def __call__(
        self,
        model: PreTrainedModel,
        layers: Mapping[str, QuantizedLinear],
        norm_weights: Mapping[str, Float[Tensor, "..."]],
        tokens: Int[Tensor, "windows length"],
        *,
        seed: int,
        progress: Callable[[], None],
    ) -> Tuned:
        """All layers and norm weights, tuned, by their full names.

        Args:
            model: the full-precision model, which teaches. It is left frozen, its norms with
                `norm_weights`.
            layers: the quantized linears by full name.
            norm_weights: those that were refitted before, by full name.
            progress: called after each step.

        Raises:
            NumericalError: the loss is not finite.
        """
        order = shuffled(len(tokens), self.steps, seed)
        model.requires_grad_(False)
        body, head = model.base_model, model.get_output_embeddings()
        prefix = f"{model.base_model_prefix}."
        teacher = _states(body, tokens, set(order))
        for name, weight in norm_weights.items():
            model.get_parameter(name).data.copy_(weight)

        def loss(call: Call, step: int) -> Tensor:
            window = tokens[order[step]].unsqueeze(0).to(model.device)
            states = call(window, use_cache=False).last_hidden_state
            return _Divergence.apply(states[0], teacher[order[step]].to(states.device), head)

        own = {name.removeprefix(prefix): layer.to(model.device) for name, layer in layers.items()}
        kind = type(model).__name__
        tuned = tune(body, own, self.rates, self.steps, loss, progress=progress, name=kind)
        return Tuned(
            {prefix + name: layer for name, layer in tuned.layers.items()},
            {prefix + name: weight for name, weight in tuned.norm_weights.items()},
            tuned.losses,
            tuned.change,
        )


@torch.no_grad()
def _states(
    body: nn.Module, tokens: Int[Tensor, "windows length"], windows: set[int]
) -> dict[int, Float[Tensor, "length hidden"]]:
    """What the head reads of some windows: far smaller than the logits."""
    first, states_of = next(body.parameters()), {}
    for window in sorted(windows):
        with in_fast_dtype(body) if first.dtype == torch.float32 else nullcontext():
            states = body(tokens[window].unsqueeze(0).to(first.device), use_cache=False)
        states_of[window] = states.last_hidden_state[0].cpu()
    return states_of


class _Divergence(torch.autograd.Function):
    """Mean KL over tokens from the states before the head; the logits of a few tokens at a time,
    their gradient taken at once."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, teacher: Tensor, head: nn.Module) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        gradient = torch.empty_like(states, dtype=torch.float32)
        for a in range(0, len(states), _CHUNK):
            part = slice(a, a + _CHUNK)
            with in_fast_dtype(head):
                log_s = head(states[part]).float().log_softmax(1)
                log_p = head(teacher[part]).float().log_softmax(1)
            p = log_p.exp()
            total += float(((log_p - log_s) * p).sum(dtype=torch.float64))
            with in_fast_dtype(head):
                gradient[part] = (log_s.exp_() - p) @ head.get_parameter("weight")
        ctx.save_for_backward(gradient / len(states))
        return (total / len(states)).to(states.device, torch.float32)

    @staticmethod
    def backward(ctx: Any, above: Tensor) -> Any:
        return ctx.saved_tensors[0] * above, None, None
