"""Tokens of a text of any length, in memory for a few pieces of it.

The text is cut into pieces of `SIZE` characters. Each is tokenized together with the `OVERLAP`
characters before it, so that what lies there is tokenized twice: with its left context in one
piece, with its right context in the next. Where both gave the same `AGREEMENT` tokens at the same
characters, before and behind a place, the first piece's tokens up to there and the second one's
from there on are the tokens of the whole text (what a tokenizer puts around each piece, such as
BOS, falls away with the ends of the pieces, but for that of the text itself):

- BPE: no merge crosses the place. One that did would join the symbols that end and begin there
  at that moment, and those depend on nothing but the token before the place and the one behind
  it, which are the same, with the same borders, in a piece where they were not joined.
- A pre-tokenizer and WordPiece look ahead no further than a word; added tokens, normalizers and
  what is put before a text change a few characters around the cut.
- Unigram: two best paths that run together over so many tokens stay together. (Among equally
  likely paths, as through a run of spaces, rounding of a sum from the start of the text chooses;
  it may choose otherwise where nothing splits the text into words.)

Where they do not agree, the second piece is tokenized again with all of the first one before it;
where that does not help (30,000 characters without a word's end), the cut stays, and is counted.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Int32, Int64
from tokenizers import Encoding
from torch import Tensor

from q2n.errors import InputError

SIZE = 2**15
"""Characters of a piece."""
OVERLAP = 2**11
AGREEMENT = 16
"""Tokens on either side of the place where two pieces are joined."""
STEP = 2**6
"""Characters between two such places that are tried."""
AT_ONCE = 8
"""Pieces that `tokenizers` takes in one call, on several cores; 20 to 100 MB."""
WHOLE = 2**24
"""Characters of a text that counts as short: WikiText-2's training split has 11 million."""

T = TypeVar("T")


@dataclass(frozen=True)
class _Stretch:
    """One piece of the text, and the one before it."""

    before: str
    text: str
    start: int


@dataclass(frozen=True)
class _Tokens:
    ids: Int32[np.ndarray, " tokens"]
    starts: Int64[np.ndarray, " tokens"]
    """Characters of the whole text at which tokens begin and end; ascending."""
    ends: Int64[np.ndarray, " tokens"]

    def around(self, index: int) -> Int64[np.ndarray, "three tokens"]:
        """Of the tokens on both sides of a place: ids and where they lie."""
        near = slice(max(index - AGREEMENT, 0), index + AGREEMENT)
        return np.stack([self.ids[near], self.starts[near], self.ends[near]])


class PieceTokenizer:
    """A tokenizer that takes texts in parts. Special tokens stand as the tokenizer puts them
    around the whole text."""

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        self.cuts = 0
        """Places where pieces did not agree."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user must know."""
        where = f"at {self.cuts} place{'s' if self.cuts > 1 else ''}"
        told = f"the text was cut {where} where no word ends, tokens there may differ"
        return (f"{told} from those of the text in one piece",) if self.cuts else ()

    @cached_property
    def bos(self) -> int | None:
        """The BOS token, where the tokenizer puts it before a text by itself.

        Raises:
            InputError: the tokenizer fails.
        """
        bos = getattr(self._tokenizer, "bos_token_id", None)
        around_nothing = self._guarded(lambda: self._tokenizer("")["input_ids"])
        return bos if bos is not None and [*around_nothing[:1]] == [bos] else None

    def tokens(self, parts: Iterable[str], enough: int | None = None) -> Int32[Tensor, " tokens"]:
        """The tokens of a text, or its first `enough` tokens (and some more).

        Raises:
            InputError: the tokenizer fails, or it does not say where its tokens lie and the text is
                longer than `WHOLE`.
        """
        found, count = [], 0
        for ids in self._stitched(parts) if self._knows_places else [self._in_one(parts)]:
            found.append(ids)
            count += len(ids)
            if enough is not None and count >= enough:
                break
        return torch.from_numpy(np.concatenate(found))

    @property
    def _knows_places(self) -> bool:
        return bool(getattr(self._tokenizer, "is_fast", False))

    def _in_one(self, parts: Iterable[str]) -> Int32[np.ndarray, " tokens"]:
        text = next(in_chunks(parts, WHOLE + 1), "")
        if len(text) > WHOLE:
            raise InputError(
                f"the text has more than {WHOLE} characters, and only a fast tokenizer reads it in "
                "pieces; use a shorter text or give the model a tokenizer.json"
            )
        return self._guarded(
            lambda: np.array(self._tokenizer(text, verbose=False)["input_ids"], np.int32).ravel()
        )

    def _stitched(self, parts: Iterable[str]) -> Iterator[Int32[np.ndarray, " tokens"]]:
        stretches = _stretches(parts)
        left, begin = None, 0
        while batch := list(islice(stretches, AT_ONCE)):
            for stretch, right in zip(batch, self._encoded(batch, OVERLAP), strict=True):
                if left is not None:
                    end, right, start = self._joined(left, right, stretch)
                    yield left.ids[begin:end]
                    begin = start
                left = right
        assert left is not None  # an empty text is one stretch
        yield left.ids[begin:]

    def _joined(self, left: _Tokens, right: _Tokens, stretch: _Stretch) -> tuple[int, _Tokens, int]:
        """Where `left` ends and `right` goes on; the latter perhaps with more text before it."""
        place = _agreement(left, right, stretch.start - OVERLAP, stretch.start)
        if place is None:
            [right] = self._encoded([stretch], SIZE)
            place = _agreement(left, right, stretch.start - SIZE, stretch.start)
        if place is None:
            self.cuts += 1
            place = _tokens_before(left, right, stretch.start - OVERLAP // 2)
        return place[0], right, place[1]

    def _encoded(self, stretches: list[_Stretch], overlap: int) -> list[_Tokens]:
        """Each stretch with so many characters before it."""
        texts = [stretch.before[-overlap:] + stretch.text for stretch in stretches]
        # verbose=False: the text is meant to be longer than the model's context.
        encodings = self._guarded(lambda: self._tokenizer(texts, verbose=False).encodings)
        origins = (stretch.start - len(stretch.before[-overlap:]) for stretch in stretches)
        return [_tokens_of(*piece) for piece in zip(encodings, origins, strict=True)]

    def _guarded(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except Exception as error:  # what tokenizers raises has no class of its own
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise InputError(
                f"the tokenizer fails on the text ({reason}); "
                "fetch the tokenizer files of the model again"
            ) from error


def in_chunks(parts: Iterable[str], size: int) -> Iterator[str]:
    """The text that the parts make, in chunks of `size` characters; the last may be shorter."""
    waiting, held = [], 0
    for part in parts:
        waiting.append(part)
        held += len(part)
        if held >= size:
            text, whole = "".join(waiting), held - held % size
            yield from (text[start : start + size] for start in range(0, whole, size))
            waiting, held = [text[whole:]], held - whole
    if held:
        yield "".join(waiting)


def _stretches(parts: Iterable[str]) -> Iterator[_Stretch]:
    """At least one, which is empty for an empty text."""
    chunks = in_chunks(parts, SIZE)
    before, text, start = "", next(chunks, ""), 0
    for following in chunks:
        yield _Stretch(before, text, start)
        before, text, start = text, following, start + len(text)
    yield _Stretch(before, text, start)


def _tokens_of(encoding: Encoding, origin: int) -> _Tokens:
    ids = np.array(encoding.ids, dtype=np.int32)
    spans = origin + np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
    return _Tokens(ids, np.maximum.accumulate(spans[:, 0]), spans[:, 1])


def _agreement(left: _Tokens, right: _Tokens, low: int, high: int) -> tuple[int, int] | None:
    """The place nearest the middle of these characters where both have the same tokens."""
    middle = (low + high) // 2
    for distance in range(0, (high - low) // 2, STEP):
        for character in (middle - distance, middle + distance):
            place = _tokens_before(left, right, character)
            near = left.around(place[0]), right.around(place[1])
            if near[0].shape[1] == 2 * AGREEMENT and np.array_equal(*near):
                return place
    return None


def _tokens_before(left: _Tokens, right: _Tokens, character: int) -> tuple[int, int]:
    """How many tokens of each begin before a character."""
    return int(np.searchsorted(left.starts, character)), int(
        np.searchsorted(right.starts, character)
    )
