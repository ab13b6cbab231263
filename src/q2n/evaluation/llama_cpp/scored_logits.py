"""A model's logits at the scored positions of a chunk, a few tokens at a time.

At 262144 words the logits of one chunk of 512 take 267 MB, and each step of arithmetic on them as
much again. So they are asked for in pieces and worked on in smaller ones, each checked first.
"""

from collections.abc import Iterable, Iterator

from jaxtyping import Float, Float32, Int64
from torch import Tensor

from q2n.errors import InputError, NumericalError
from q2n.evaluation.body import Body
from q2n.evaluation.llama_cpp.layout import Layout

AT_ONCE = 2**21
"""Logits that are worked on together: 8 MB in float32."""

Pieces = Iterable[Float[Tensor, "_ n_vocab"]]
"""Logits at the scored positions of a chunk (`Layout.scored` of them, from `Layout.first` on), in
pieces of any number of tokens."""

ChunkLogits = Iterable[Pieces]
"""Of each chunk, in order."""


def chunk_logits(body: Body, layout: Layout, batch_size: int = 1) -> Iterator[Pieces]:
    """The logits of a model that runs over the chunks.

    Args:
        body: its windows are the chunks, with BOS in place of their first tokens if the model is to
            see it (`BaseFile.windows`).
        batch_size: chunks that run together.
    """
    rows = _rows(layout)
    for states in body.states(batch_size):
        yield (body.head(few) for few in states[layout.first : -1].split(rows))


def scored_logits(
    pieces: Pieces, layout: Layout, chunk: int
) -> Iterator[Float32[Tensor, "_ n_vocab"]]:
    """The logits of one chunk in float32, in pieces of at most `AT_ONCE`, on their own device.

    Args:
        chunk: its number from 0, for messages.

    Raises:
        InputError: logits of another vocabulary, or of another number of positions.
        NumericalError: logits that are NaN or infinite.
    """
    seen = 0
    for piece in pieces:
        seen += len(piece)
        if piece.shape[1] != layout.n_vocab:
            raise InputError(
                f"the model gives logits of {piece.shape[1]} words where the base file has "
                f"{layout.n_vocab}; both models must have the same vocabulary"
            )
        if seen > layout.scored:
            raise InputError(_wrong_count(seen, layout))
        for few in piece.split(_rows(layout)):
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


def _rows(layout: Layout) -> int:
    """Tokens that are worked on together."""
    return max(1, AT_ONCE // layout.n_vocab)


def _wrong_count(seen: int, layout: Layout) -> str:
    return f"logits of {seen} positions were given, and a chunk scores {layout.scored}"
