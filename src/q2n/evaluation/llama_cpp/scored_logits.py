"""A model's logits at the scored positions of a chunk, a few tokens at a time.

At 262144 words the logits of one chunk of 512 take 267 MB, and each step of arithmetic on them as
much again. So they are asked for in pieces and worked on in smaller ones, each checked first.
"""

from collections.abc import Callable, Iterable, Iterator

from jaxtyping import Float, Float32, Int64
from torch import Tensor

from q2n.errors import InputError, NumericalError
from q2n.evaluation.llama_cpp.layout import Layout

AT_ONCE = 2**21
"""Logits that are worked on together: 8 MB in float32."""

LogitsOf = Callable[[Int64[Tensor, " n_ctx"]], Iterable[Float[Tensor, "some n_vocab"]]]
"""From the tokens of a chunk to the logits at its scored positions (`Layout.scored` of them, from
`Layout.first` on), in pieces of any number of tokens. A model that wants BOS at the start of a text
is given it by this function, in place of the chunk's first token: a file has the text's own."""


def scored_logits(
    logits_of: LogitsOf, layout: Layout, tokens: Int64[Tensor, " n_ctx"], chunk: int
) -> Iterator[Float32[Tensor, "few n_vocab"]]:
    """The logits of one chunk in float32, in pieces of at most `AT_ONCE`, on their own device.

    Args:
        chunk: its number from 0, for messages.

    Raises:
        InputError: logits of another vocabulary, or of another number of positions.
        NumericalError: logits that are NaN or infinite.
    """
    rows, seen = max(1, AT_ONCE // layout.n_vocab), 0
    for piece in logits_of(tokens):
        seen += len(piece)
        if piece.shape[1] != layout.n_vocab:
            raise InputError(
                f"the model gives logits of {piece.shape[1]} words where the base file has "
                f"{layout.n_vocab}; both models must have the same vocabulary"
            )
        if seen > layout.scored:
            raise InputError(_wrong_count(seen, layout))
        for few in piece.split(rows):
            logits = few.float()
            if not bool(logits.amax(1).isfinite().all()):  # NaN if any is; -inf for some passes
                raise NumericalError(
                    f"logits in chunk {chunk + 1} of {layout.n_chunks} are not finite: the model's "
                    "weights or activations are not; try --dtype float32"
                )
            yield logits
    if seen < layout.scored:
        raise InputError(_wrong_count(seen, layout))


def targets(layout: Layout, tokens: Int64[Tensor, " n_ctx"]) -> Int64[Tensor, " scored"]:
    """The tokens that the scored positions predict."""
    return tokens[layout.first + 1 :]


def _wrong_count(seen: int, layout: Layout) -> str:
    return f"logits of {seen} positions were given, and a chunk scores {layout.scored}"
