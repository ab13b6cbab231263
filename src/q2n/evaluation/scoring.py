"""Runs a model over a text and scores every token that counts, by itself or beside a reference.

A reference model is run first and dropped: its states (states_file.py) and its head stay. So one
model at a time is in memory, and logits of a few hundred tokens.
"""

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Int64
from torch import Tensor

from q2n.errors import InputError, NumericalError
from q2n.evaluation.body import Body
from q2n.evaluation.per_token import Numbers, PerToken, compared, in_parts, losses
from q2n.evaluation.states_file import StatesFile
from q2n.linalg.finite import all_finite
from q2n.models.head import States

CHUNK = 2**26
"""Logits of one model in memory at once, 256 MB in float32: enough tokens (256 of a vocabulary of
262144) that reading the weight of the head, or widening it, costs little beside its product."""
Progress = Callable[[int], None]
"""Called with the number of windows that were done."""


class Reference:
    """What a reference model says of the tokens that count in a text."""

    def __init__(self, body: Body, batch_size: int, progress: Progress | None = None):
        """Runs the model. It may be dropped then; its head is kept."""
        self.windows, self.head, self.states = body.windows, body.head, StatesFile()
        for states, _ in _scored(body, batch_size, progress):
            self.states.append(states)


def score(body: Body, batch_size: int, progress: Progress | None = None) -> Numbers:
    """The loss of every token that counts, in nats.

    Raises:
        NumericalError: one is not finite; the message names the window.
    """
    parts = []
    for window, (states, targets) in enumerate(_scored(body, batch_size, progress)):
        found = [
            losses(body.head(s), t) for s, t in in_parts(CHUNK, body.head.words, states, targets)
        ]
        parts.append(_finite(torch.cat(found), "loss", body, window))
    return torch.cat(parts)


def score_against(
    reference: Reference, body: Body, batch_size: int, progress: Progress | None = None
) -> PerToken:
    """Every token that counts, compared with what the reference says of it.

    Raises:
        InputError: the vocabularies differ in size.
        NumericalError: logits are not finite; the message names the window.
    """
    _require_alike(reference, body)
    parts = []
    for window, ((states, targets), given) in enumerate(
        zip(_scored(body, batch_size, progress), reference.states, strict=True)
    ):
        given = given.to(states.device)
        found = [
            compared(body.head(s), reference.head(g), t)
            for s, g, t in in_parts(CHUNK, body.head.words, states, given, targets)
        ]
        part = PerToken.joined(found)
        _finite(part.reference_loss, "loss of the reference", body, window)
        _finite(part.loss, "loss", body, window)
        _finite(part.divergence, "divergence from the reference", body, window)
        parts.append(part)
    return PerToken.joined(parts)


def _scored(
    body: Body, batch_size: int, progress: Progress | None
) -> Iterator[tuple[States, Int64[Tensor, " tokens"]]]:
    """Of each window the states from which the tokens that count are predicted, and these."""
    if batch_size < 1:
        raise InputError(f"batch size {batch_size} must be at least 1")
    windows = body.windows
    for tokens, count, states in zip(
        windows.tokens, windows.scored.tolist(), body.states(batch_size), strict=True
    ):
        yield states[-count - 1 : -1], tokens[-count:]
        if progress is not None:
            progress(1)


def _require_alike(reference: Reference, body: Body) -> None:
    ours, theirs = body.head.words, reference.head.words
    if ours != theirs:
        raise InputError(
            f"the model has a vocabulary of {ours} and the reference one of {theirs}: their "
            "predictions cannot be compared; give the model that was quantized as the reference"
        )


def _finite(numbers: Numbers, what: str, body: Body, window: int) -> Numbers:
    if not all_finite(numbers):
        raise NumericalError(
            f"the {what} of window {window} of {body.windows.label!r} is not finite: the model's "
            "weights or activations are not; try --dtype float32, or look for NaN in the checkpoint"
        )
    return numbers
