"""A model in two parts: the body that turns tokens into states, and the head that turns states
into logits.

States are a few hundred numbers a token and logits as many as there are words, so whatever is
computed from logits is computed for a few tokens at a time, and only states are kept.

The head is everything that the model does after its body: the output layer, and in some models a
scaling or a cap of the logits. So it is not taken out of the model but is the model itself, with
a stand-in for the body that returns given states. One short forward pass decides whether the two
parts together give the model's logits to the bit. Where they do not, the body is the whole model
and its states are the logits.
"""

from collections.abc import Callable
from copy import copy
from typing import Any, Protocol, cast, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from q2n.errors import InputError

PROBE = 16
"""Tokens of the forward pass that decides."""

States = Float[Tensor, "tokens width"]
Logits = Float[Tensor, "tokens words"]


@runtime_checkable
class HeadCall(Protocol):
    """States to logits."""

    words: int
    """Of the vocabulary."""

    def __call__(self, states: States) -> Logits: ...


class Head:
    """States to logits, by the model's own code. Holds the output layer and no block."""

    def __init__(self, model: PreTrainedModel, body: str, output: ModelOutput, words: int):
        """`body` is the name of the module that makes the states, `output` what it returns; the
        states in it are replaced."""
        self._body = _StandIn(output)
        self._model = _with_module(model, body.split("."), self._body)
        self.words = words

    def __call__(self, states: States) -> Logits:
        self._body.states = states.unsqueeze(0)
        tokens = torch.zeros(1, len(states), dtype=torch.long, device=states.device)
        try:
            return cast(Tensor, self._model(input_ids=tokens, use_cache=False).logits)[0]
        finally:
            self._body.states = None


def _with_module(model: nn.Module, path: list[str], module: nn.Module) -> nn.Module:
    """A copy of a model with another module in one place, its other modules the same objects."""
    changed = copy(model)
    inner = module
    if path[1:]:
        inner = _with_module(cast(nn.Module, model._modules[path[0]]), path[1:], module)
    changed._modules = {**model._modules, path[0]: inner}
    return changed


class _StandIn(nn.Module):
    """Returns given states as the body of a model would."""

    def __init__(self, output: ModelOutput):
        super().__init__()
        self.form = type(output)
        self.states: Tensor | None = None

    def forward(self, *_: Any, **__: Any) -> ModelOutput:
        return self.form(last_hidden_state=self.states)


class WholeHead:
    """The head of a model whose states are its logits."""

    def __init__(self, words: int):
        self.words = words

    def __call__(self, states: Logits) -> Logits:
        return states


def head_and_body(
    model: PreTrainedModel, tokens: Int[Tensor, "windows length"]
) -> tuple[HeadCall, nn.Module]:
    """As `take_apart` of a model in memory, tried on the beginning of a text."""
    device = next(model.get_input_embeddings().parameters()).device
    probe = tokens[:1, :PROBE].to(device)
    return take_apart(model, lambda module: module(probe, use_cache=False))


@torch.no_grad()
def take_apart(
    model: PreTrainedModel, run: Callable[[nn.Module], Any]
) -> tuple[HeadCall, nn.Module]:
    """The head of a model and its body, which is the model itself where none makes states from
    which the head makes the model's logits.

    Args:
        run: what the model, or a module in it, returns on a short text.
    """
    logits = run(model).logits[0]
    for name in _bodies(model):
        body = model.get_submodule(name)
        try:
            output = run(body)
            head = Head(model, name, output, logits.shape[1])
            found = head(states_in(output)[0])
            agree = torch.allclose(found, logits, rtol=0, atol=0, equal_nan=True)
        except (TypeError, AttributeError, LookupError, RuntimeError, InputError):
            continue  # a body unlike others
        if agree:
            return head, body
    return WholeHead(logits.shape[1]), model


def states_in(output: Any) -> Float[Tensor, "windows length width"]:
    """The states that a body returns, or the logits of a whole model."""
    return cast(Tensor, output.logits if "logits" in output else output.last_hidden_state)


def _bodies(model: PreTrainedModel) -> list[str]:
    """Names of the modules that may make the states from which the logits come."""
    if model.get_output_embeddings() is None:
        return []
    names = {module: name for name, module in model.named_modules() if name}
    bodies = (model.base_model, model.get_decoder())
    return list(dict.fromkeys(names[body] for body in bodies if body in names))
