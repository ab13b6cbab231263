"""Token windows: the form in which the model sees text.

Calibration draws windows at seeded random places of the tokenized text (`excerpts.py`: of a
text beyond 17 million characters, of parts of it). Evaluation cuts it into windows side by
side from its start, reads no further than it needs, and drops the tail. The tokens are
those of the text in one piece (`pieces.py`), as in the published baselines, with the special
tokens that the tokenizer adds by itself before and behind the text.

**BOS.** A model whose tokenizer puts BOS before a text was trained to find it there, and is another
model without it. So the first token of each window is replaced by BOS, as llama.cpp does: the
window keeps its length, and the other tokens, which are predicted, are the same as without. The
published tables have BOS before the first window only (before each document where windows are
drawn from these): `protocols.py` says which way is whose.
"""

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import torch
from jaxtyping import Int32, Int64
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from q2n.data.corpora import Corpus
from q2n.data.excerpts import is_long, random_window, windows_of_excerpts
from q2n.data.pieces import PieceTokenizer
from q2n.data.protocols import PROTOCOLS, ProtocolName
from q2n.errors import InputError

MOST_DRAWS = 10_000
"""Documents in a row that may be too short. In C4 one of forty exceeds 2048 tokens, so a
false alarm has probability 0.975^10000."""


MOST_TOKENS = 2**28
"""Of all windows together: 2 GB of token ids, and a thousand times that of activations."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenWindows:
    """Windows of equal length, on the CPU."""

    tokens: Int64[Tensor, "windows length"]
    label: str
    """Where the text is from, for records and messages."""
    protocol: ProtocolName = "q2n"
    """By which they were cut, and which says what of them counts."""
    stride: int | None = None
    """Tokens from the start of one to that of the next, where they overlap."""
    notes: tuple[str, ...] = ()
    """What a user must know of how they were cut: sentences without a full stop."""
    replaced: Int64[Tensor, " windows"] | None = None
    """The tokens of the text in whose places BOS may stand, the first of each window."""

    @property
    def of_text(self) -> Int64[Tensor, "windows length"]:
        """The tokens of the text, without BOS in the places of others."""
        tokens = self.tokens.clone()
        if self.replaced is not None:
            tokens[:, 0] = self.replaced
        return tokens

    @cached_property
    def sha256(self) -> str:
        """Of the shape and the tokens as little-endian int64."""
        digest = hashlib.sha256(f"{tuple(self.tokens.shape)}".encode())
        digest.update(self.tokens.contiguous().numpy().astype("<i8").tobytes())
        return digest.hexdigest()

    @cached_property
    def scored(self) -> Int64[Tensor, " windows"]:
        """How many of the last predictions in each window count."""
        counts = torch.full((len(self),), PROTOCOLS[self.protocol].scored(self.length))
        if self.stride is not None:  # what the window before has not predicted
            counts[1:] = counts[1:].clamp(max=self.stride)
        return counts

    def within(self, vocabulary: int | None) -> Self:
        """The same windows.

        Args:
            vocabulary: rows of the model's embedding; None where that is not known.

        Raises:
            InputError: a token has none of these rows.
        """
        highest = int(self.tokens.max())
        if vocabulary is not None and highest >= vocabulary:
            raise InputError(
                f"the text {self.label!r} has token {highest}, which is outside the model's "
                f"vocabulary of {vocabulary}; the tokenizer belongs to another model"
            )
        return self

    def spread(self, count: int) -> Int64[Tensor, "{count} length"]:
        """The tokens of so many of the windows, evenly spaced."""
        return self.tokens[torch.arange(count) * len(self) // count]

    def __len__(self) -> int:
        return self.tokens.shape[0]

    @property
    def length(self) -> int:
        """Tokens in a window."""
        return self.tokens.shape[1]


def calibration_windows(
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerBase,
    *,
    count: int,
    length: int,
    seed: int,
    protocol: ProtocolName = "q2n",
) -> TokenWindows:
    """`count` windows of `length` tokens at random places; two may overlap.

    Each starts at `randint(0, L - length - 1)`, inclusive, of a text of L tokens. Where the
    corpus has `documents` they are drawn uniformly until one is longer than `length`,
    then its offset, all from one stream of Python's `random.Random(seed)`.

    Raises:
        InputError: the text is too short, which the message says with the counts; it cannot be
            read or tokenized; too many windows, or too long.
    """
    _check_size(count, length)
    stream, pieces = random.Random(seed), PieceTokenizer(tokenizer)
    notes: tuple[str, ...] = ()
    if corpus.documents is not None:
        windows = _drawn(corpus, corpus.documents, pieces, count, length, stream)
    elif is_long(corpus.parts):
        windows = torch.stack(
            windows_of_excerpts(corpus, pieces, count=count, length=length, stream=stream)
        )
        notes = (f"calibration windows are from excerpts of {corpus.label!r}, a long text",)
    else:
        text = _start_of_text(corpus, pieces, more_than=length)
        windows = torch.stack([random_window(text, length, stream) for _ in range(count)])
        notes = _overlapping(corpus.label, len(text), count, length)
    return TokenWindows(
        tokens=_begun(windows, pieces, protocol),
        label=corpus.label,
        protocol=protocol,
        notes=corpus.notes + notes + pieces.notes,
    )


def evaluation_windows(
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    *,
    limit: int | None = None,
    stride: int | None = None,
    protocol: ProtocolName = "q2n",
) -> TokenWindows:
    """The text cut into windows of `length` tokens, from its start; the tail is dropped.

    `limit` keeps the first windows only. With `stride` below `length` successive windows
    start `stride` tokens apart and overlap. Those of a corpus that is `drawn` are at random
    places, by the rule of `calibration_windows` with seed 0.

    Raises:
        InputError: the text does not fill one window, or cannot be read or tokenized; an option is
            out of range; too many windows; a stride in a protocol that has none.
    """
    _check_stride(length, stride, protocol)
    most = min(x for x in (limit, corpus.most_windows, MOST_TOKENS) if x is not None)
    _check_size(min(most, 1), length)
    step, pieces = stride or length, PieceTokenizer(tokenizer)
    if corpus.drawn and corpus.documents is not None:
        windows = _drawn(corpus, corpus.documents, pieces, most, length, random.Random(0))
    else:
        enough = min(length + (most - 1) * step, MOST_TOKENS + step)
        text = _start_of_text(corpus, pieces, more_than=length - 1, enough=enough)
        windows = text.unfold(0, length, step)[:most]
    _check_size(len(windows), length)
    return TokenWindows(
        tokens=_begun(windows, pieces, protocol),
        label=corpus.label,
        protocol=protocol,
        stride=stride,
        notes=corpus.notes + pieces.notes,
        replaced=windows[:, 0].long(),
    )


def _begun(
    windows: Int32[Tensor, "windows length"], pieces: PieceTokenizer, protocol: ProtocolName
) -> Int64[Tensor, "windows length"]:
    """With BOS as first token of each, where the protocol and the tokenizer have it."""
    begun = windows.long()  # a copy: overlapping windows share their memory
    if PROTOCOLS[protocol].bos and pieces.bos is not None:
        begun[:, 0] = pieces.bos
    return begun


def _check_stride(length: int, stride: int | None, protocol: ProtocolName) -> None:
    if stride is None:
        return
    if not 1 <= stride <= length:
        raise InputError(f"stride {stride} must be between 1 and the window length {length}")
    if not PROTOCOLS[protocol].strides:
        raise InputError(
            f"windows of the protocol {protocol!r} do not overlap; leave --stride out, or use "
            "--protocol q2n"
        )


def _check_size(count: int, length: int) -> None:
    if count < 1 or length < 2:
        raise InputError(
            f"cannot cut {count} windows of {length} tokens; give at least 1 window of at "
            "least 2 tokens"
        )
    if count * length > MOST_TOKENS:
        raise InputError(
            f"{count} windows of {length} tokens are more than {MOST_TOKENS} tokens; give "
            "fewer windows or shorter ones"
        )


def _drawn(
    corpus: Corpus,
    documents: Sequence[str],
    pieces: PieceTokenizer,
    count: int,
    length: int,
    stream: random.Random,
) -> Int32[Tensor, "{count} {length}"]:
    """Each from a document of its own."""
    texts = _long_documents(corpus.label, documents, pieces, length, stream)
    return torch.stack([random_window(next(texts), length, stream) for _ in range(count)])


def _long_documents(
    label: str,
    documents: Sequence[str],
    pieces: PieceTokenizer,
    length: int,
    stream: random.Random,
) -> Iterator[Int32[Tensor, " tokens"]]:
    """Uniformly drawn documents of more than `length` tokens."""
    short: dict[int, int] = {}  # place -> tokens, so that none is tokenized again
    if not documents:
        raise InputError(_too_short(label, "no document", length))
    while True:
        for _ in range(MOST_DRAWS):
            place = stream.randint(0, len(documents) - 1)
            if place in short:
                continue
            tokens = pieces.tokens([documents[place]])
            if len(tokens) > length:
                yield tokens
                break
            short[place] = len(tokens)
        else:
            longest = max(short.values())
            counts = f"{MOST_DRAWS} draws of a document, the longest with {longest} tokens"
            raise InputError(_too_short(label, counts, length))


def _start_of_text(
    corpus: Corpus, pieces: PieceTokenizer, *, more_than: int, enough: int | None = None
) -> Int32[Tensor, " tokens"]:
    """All tokens of the text, or its first `enough`."""
    tokens = pieces.tokens(corpus.parts, enough)
    if len(tokens) <= more_than:
        raise InputError(_too_short(corpus.label, f"{len(tokens)} tokens", more_than))
    return tokens


def _overlapping(label: str, tokens: int, count: int, length: int) -> tuple[str, ...]:
    """What a user must know of windows that have more tokens than their text."""
    if count * length <= tokens:
        return ()
    return (
        f"the {count} calibration windows of {length} tokens overlap: the text {label!r} has only "
        f"{tokens} tokens",
    )


def _too_short(label: str, counts: str, more_than: int) -> str:
    return (
        f"the text {label!r} is too short: {counts}, and a window here takes more than "
        f"{more_than} tokens; use a longer text or shorter windows"
    )
