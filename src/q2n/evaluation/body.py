"""A model that runs over one text, in two parts: its body and its head (models/head.py)."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, cast, runtime_checkable

from torch import Tensor
from transformers import PreTrainedModel

from q2n.data.windows import TokenWindows
from q2n.errors import InputError
from q2n.linalg.forward_products import forward_products
from q2n.models.head import HeadCall, States, head_and_body, states_in


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


class Whole:
    """A model in memory, in two parts.

    Raises:
        InputError: the windows are longer than the model's context, or have tokens that are not in
            its vocabulary.
    """

    def __init__(self, model: PreTrainedModel, windows: TokenWindows):
        self.model, self.windows = model, windows
        require_fit(model, windows)
        self.device = next(model.get_input_embeddings().parameters()).device
        self.head, self._body = head_and_body(model, windows.tokens)

    def states(self, batch_size: int) -> Iterator[States]:
        for tokens in self.windows.tokens.split(batch_size):
            yield from states_in(self._body(tokens.to(self.device), use_cache=False))


def require_fit(model: PreTrainedModel, windows: TokenWindows) -> None:
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if context is not None and windows.length > context:
        raise InputError(
            f"windows of {windows.length} tokens exceed the model's context of {context}; "
            f"give --length {context} or less"
        )
    windows.within(len(cast(Tensor, model.get_input_embeddings().weight)))


@contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """The model in evaluation mode, its products as fast as they are on its device; afterwards as
    before."""
    training = model.training
    model.eval()
    try:
        with forward_products(model.device):
            yield
    finally:
        model.train(training)
