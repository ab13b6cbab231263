"""Calibration windows of a text too long to be tokenized as a whole.

The published rule needs the number of tokens in the text, so all of it is tokenized for any
number of windows. Of a text of more than `pieces.WHOLE` characters excerpts are drawn instead,
as documents of C4 are: the text is divided into excerpts of 16 characters for each token of a
window (English has four to five), each window draws one uniformly, again if it has too few
tokens, and then its offset in it. The text is read twice, once to be measured and once for the
excerpts; only these are tokenized.
"""

import random
from collections.abc import Container, Iterable, Iterator

from jaxtyping import Int32
from torch import Tensor

from q2n.data.corpora import Corpus
from q2n.data.pieces import WHOLE, PieceTokenizer, in_chunks
from q2n.errors import InputError

CHARACTERS = 16
"""Of an excerpt, for each token of a window."""
ROUNDS = 8
"""How often excerpts with too few tokens are drawn again."""


def windows_of_excerpts(
    corpus: Corpus,
    pieces: PieceTokenizer,
    *,
    count: int,
    length: int,
    stream: random.Random,
) -> list[Int32[Tensor, " length"]]:
    """`count` windows of `length` tokens.

    Raises:
        InputError: too many excerpts are too short.
    """
    characters = sum(len(part) for part in corpus.parts)
    size = min(CHARACTERS * length, characters)
    windows: dict[int, Int32[Tensor, " length"]] = {}
    for _ in range(ROUNDS):
        drawn: dict[int, list[int]] = {}  # excerpt -> windows
        for window in sorted(set(range(count)) - set(windows)):
            drawn.setdefault(stream.randrange(characters // size), []).append(window)
        for place, text in _excerpts(corpus.parts, size, drawn):
            tokens = pieces.tokens([text])
            if len(tokens) > length:
                windows |= {w: random_window(tokens, length, stream) for w in drawn[place]}
        if len(windows) == count:
            return [windows[window] for window in range(count)]
    raise InputError(
        f"the text {corpus.label!r} has excerpts of {size} characters with no more than {length} "
        "tokens, and too many of them; use another text or shorter windows"
    )


def is_long(parts: Iterable[str]) -> bool:
    """Whether a text has more than `WHOLE` characters; it is read so far and no further."""
    characters = 0
    for part in parts:
        characters += len(part)
        if characters > WHOLE:
            return True
    return False


def random_window(
    tokens: Int32[Tensor, " tokens"], length: int, stream: random.Random
) -> Int32[Tensor, " length"]:
    """Cut at a random place; there must be more than `length` tokens."""
    start = stream.randint(0, len(tokens) - length - 1)
    return tokens[start : start + length].clone()  # the rest is not kept


def _excerpts(parts: Iterable[str], size: int, places: Container[int]) -> Iterator[tuple[int, str]]:
    """Those at these places, in the order of the text."""
    return ((place, text) for place, text in enumerate(in_chunks(parts, size)) if place in places)
