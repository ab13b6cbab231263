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

from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from typing import Any, Protocol, cast, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from q2n.data.windows import TokenWindows
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


@runtime_checkable
class Body(Protocol):
    """A model that runs over one text."""

    windows: TokenWindows
    head: HeadCall
    """Needs nothing else of the model, which may be dropped."""

    def states(self, batch_size: int) -> Iterator[States]:
        """Of every token of each window, one window after the other, on the device on which the
        head takes them. `batch_size` windows run together."""
        ...


class Head:
    """States to logits, by the model's own code. Holds the output layer and no block."""

    def __init__(self, model: PreTrainedModel, body: str, output: ModelOutput):
        """`body` is the name of the module that makes the states, `output` what it returns; the
        states in it are replaced."""
        self._body = _StandIn(output)
        self._model = _with_module(model, body.split("."), self._body)
        self.words = len(cast(Tensor, model.get_output_embeddings().weight))

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


class Whole:
    """A model in memory, in two parts.

    Raises:
        InputError: the windows are longer than the model's context, or have tokens that are not in
            its vocabulary.
    """

    def __init__(self, model: PreTrainedModel, windows: TokenWindows):
        self.model, self.windows = model, windows
        _require_fit(model, windows)
        self.device = _embeddings(model).device
        self.head: HeadCall = WholeHead(len(_embeddings(model)))
        self._body: nn.Module | None = None
        """None: the whole model."""
        for name in _bodies(model):
            if self._separate(name):
                break

    def states(self, batch_size: int) -> Iterator[States]:
        for first in range(0, len(self.windows), batch_size):
            yield from self._run(self.windows.tokens[first : first + batch_size].to(self.device))

    def _run(self, tokens: Int[Tensor, "windows length"]) -> Tensor:
        if self._body is None:
            return cast(Tensor, self.model(tokens, use_cache=False).logits)
        return cast(Tensor, self._body(tokens, use_cache=False).last_hidden_state)

    def _separate(self, name: str) -> bool:
        """Take the model apart at this module, if body and head are the model then."""
        probe, body = (
            self.windows.tokens[:1, :PROBE].to(self.device),
            self.model.get_submodule(name),
        )
        logits = self._run(probe)[0]
        try:
            output = body(probe, use_cache=False)
            head = Head(self.model, name, output)
            agree = torch.equal(head(output.last_hidden_state[0]), logits)
        except (TypeError, AttributeError, LookupError, RuntimeError):  # of a body unlike others
            return False
        if agree:
            self.head, self._body = head, body
        return agree


def _bodies(model: PreTrainedModel) -> list[str]:
    """Names of the modules that may make the states from which the logits come."""
    if model.get_output_embeddings() is None:
        return []
    names = {module: name for name, module in model.named_modules() if name}
    bodies = (model.base_model, model.get_decoder())
    return list(dict.fromkeys(names[body] for body in bodies if body in names))


def _embeddings(model: PreTrainedModel) -> Float[Tensor, "words width"]:
    return cast(Tensor, model.get_input_embeddings().weight)


def _require_fit(model: PreTrainedModel, windows: TokenWindows) -> None:
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if context is not None and windows.length > context:
        raise InputError(
            f"windows of {windows.length} tokens exceed the model's context of {context}; "
            "use shorter windows"
        )
    windows.within(len(_embeddings(model)))


@contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """The model in evaluation mode; afterwards as before."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
