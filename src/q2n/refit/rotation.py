r"""Rotations that are learned on the loss of the quantized model (SpinQuant, Liu et al. 2024).

Any rotation leaves the function of a model as it is, and some leave less to lose when weights and
activations are rounded. The model comes rotated by Hadamard matrices; what is learned is how it is
turned further: Q of the residual stream, N of each block's heads (transforms/turn.py). Its weights
are frozen. In each step

    weights are turned and, if asked for, rounded to the nearest;
    inputs of linears and the cache are rounded as the run rounds them;
    gradients pass all rounding unchanged (straight through);
    Q and N take a step of Cayley SGD (linalg/cayley.py), whose rate falls to 0 along a cosine.

The loss is the cross entropy of the token that comes (published) or the KL divergence from the
full-precision model. With GPTQ in the second step the rotation is better learned with activations
alone rounded, for GPTQ makes up for much of what rounding to the nearest loses.

The memory is that of the model, of its turned weights, and of a window's activations for the way
back.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call
from transformers import PreTrainedModel

from q2n.errors import InputError, NumericalError
from q2n.grids.per_token import TokenGrid
from q2n.linalg.cayley import cayley_step, retracted
from q2n.models.head import HeadCall, head_and_body
from q2n.models.layout import DecoderLayout
from q2n.models.turned_source import inside_rules
from q2n.refit.descent import in_fast_dtype
from q2n.refit.predictions import cross_entropy, divergence, states_of
from q2n.refit.tuner import shuffled
from q2n.transforms.runtime import RuntimeParts, attach_quantizers
from q2n.transforms.turn import Turn

RETRACTED_AFTER: Final = 101
"""Steps. The released code draws one step in 101 at random."""


@dataclass(frozen=True, kw_only=True)
class RotationLearning:
    """How a rotation is learned."""

    steps: int
    windows: int
    """Of a step, whose losses are averaged: one window's gradient alone is mostly noise."""
    rate: float
    """Length of the first step, at most."""
    loss: Literal["cross_entropy", "divergence"]
    weights: TokenGrid | None
    """How the rows of weights are rounded meanwhile; None: not at all."""

    def __call__(
        self,
        model: PreTrainedModel,
        layout: DecoderLayout,
        parts: RuntimeParts,
        tokens: Int[Tensor, "windows length"],
        *,
        seed: int,
        progress: Callable[[], None],
    ) -> tuple[Turn, list[float]]:
        """The turn, orthogonal to float64, and the loss of each step before it was taken.

        Args:
            model: rotated, in full precision, its rotations attached; its activations are rounded
                from here on.
            parts: what runs beside its weights.
            progress: called after each step.

        Raises:
            InputError: predictions do not follow from the states of the blocks.
            NumericalError: the loss is not finite.
        """
        order = shuffled(len(tokens), self.steps * self.windows, seed)
        model.requires_grad_(False)
        quantized = _TurnedModel(model, layout, parts, self.weights)
        loss = self._loss(model, tokens, order)
        attach_quantizers(model, parts)
        sizes = layout.sizes
        start = Turn.none(sizes.hidden, layout.count, sizes.head_dim)
        found = [x.to(model.device) for x in (start.stream, start.heads)]
        losses: list[float] = []
        with torch.enable_grad():
            for step in range(self.steps):
                turn = Turn(*(x.requires_grad_() for x in found))
                total, slopes = 0.0, [torch.zeros_like(x) for x in found]
                for window in order[step * self.windows :][: self.windows]:
                    with in_fast_dtype(model):
                        states = quantized.states(turn, tokens[window].to(model.device))
                        value = loss(states, window) / self.windows
                    total += _finite(float(value.detach()), step)
                    for slope, more in zip(slopes, torch.autograd.grad(value, found), strict=True):
                        slope += more
                losses.append(total)
                found = self._stepped(found, slopes, step)
                progress()
        return Turn(*(retracted(x.double()).cpu() for x in found)), losses

    def _loss(
        self, model: PreTrainedModel, tokens: Int[Tensor, "windows length"], order: list[int]
    ) -> Callable[[Tensor, int], Tensor]:
        head = _head(model, tokens)
        if self.loss == "cross_entropy":
            return lambda states, window: cross_entropy(
                states[:-1], tokens[window, 1:].to(states.device), head
            )
        teacher = states_of(model.base_model, tokens, set(order))
        return lambda states, window: divergence(states, teacher[window].to(states.device), head)

    @torch.no_grad()
    def _stepped(self, found: list[Tensor], slopes: list[Tensor], step: int) -> list[Tensor]:
        rate = self.rate * (1 + math.cos(math.pi * step / self.steps)) / 2
        new = [cayley_step(x.detach(), g, rate) for x, g in zip(found, slopes, strict=True)]
        return [retracted(x) for x in new] if (step + 1) % RETRACTED_AFTER == 0 else new


def _head(model: PreTrainedModel, tokens: Int[Tensor, "windows length"]) -> HeadCall:
    head, body = head_and_body(model, tokens)
    if body is not model.base_model:
        raise InputError(
            f"the predictions of {type(model).__name__} do not follow from the states of its "
            "blocks, which a learned rotation turns; use --rotate hadamard"
        )
    return head


class _TurnedModel:
    """A model in memory as it would run after a turn and rounding, differentiable in the turn."""

    def __init__(
        self,
        model: PreTrainedModel,
        layout: DecoderLayout,
        parts: RuntimeParts,
        grid: TokenGrid | None,
    ):
        self.body: nn.Module = model.base_model
        self.embeddings = model.get_input_embeddings()
        self.grid = grid
        prefix = f"{model.base_model_prefix}."
        named = dict(model.named_parameters())
        rules = {name: rule for name, rule in inside_rules(layout).items() if name in named}
        self._tensors = {
            name.removeprefix(prefix): (named[name], rule, self._is_rounded(name, parts))
            for name, rule in rules.items()
        }

    def states(self, turn: Turn, tokens: Int[Tensor, " length"]) -> Float[Tensor, "length hidden"]:
        """What the head, which is not turned, reads of one window."""
        exact = torch.autocast(tokens.device.type, enabled=False)  # or bfloat16 is the whole stream
        with exact:
            inputs = turn.reader(self.embeddings(tokens))
        weights = {
            name: self._rounded(rule(turn, tensor)) if is_rounded else rule(turn, tensor)
            for name, (tensor, rule, is_rounded) in self._tensors.items()
        }
        given = {"inputs_embeds": inputs.unsqueeze(0), "use_cache": False}
        found = functional_call(self.body, weights, kwargs=given)
        with exact:
            return turn.unread(found.last_hidden_state[0])

    def _is_rounded(self, name: str, parts: RuntimeParts) -> bool:
        linear = name.removesuffix(".weight")
        return linear != name and any(fnmatchcase(linear, x) for x in parts.rounded)

    def _rounded(self, weight: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
        return weight if self.grid is None else self.grid.quantize(weight)


def _finite(loss: float, step: int) -> float:
    if not math.isfinite(loss):
        raise NumericalError(
            f"the loss of step {step} of the learned rotation is {loss}; use --rotate hadamard, or "
            "--dtype float32"
        )
    return loss
