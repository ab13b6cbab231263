"""Token windows: the form in which the model sees text.

Calibration draws windows at seeded random places of the tokenized text. Evaluation
cuts it into windows side by side and drops the tail. Text is tokenized in one piece, as
the published baselines do it, with the special tokens that the tokenizer adds by itself:
one that puts BOS before a text puts it before the first window only (before each
document where windows are drawn by document), never before each window.
"""

import hashlib
import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Int64
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from q2n.data.corpora import Corpus
from q2n.errors import InputError

MOST_DRAWS = 10_000
"""Documents in a row that may be too short. In C4 one of forty exceeds 2048 tokens, so a
false alarm has probability 0.975^10000."""


_LEAST = "; give at least 1 window of at least 2 tokens"


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenWindows:
    """Windows of equal length, on the CPU."""

    tokens: Int64[Tensor, "windows length"]
    label: str
    """Where the text is from, for records and messages."""

    @cached_property
    def sha256(self) -> str:
        """Of the shape and the tokens as little-endian int64."""
        digest = hashlib.sha256(f"{tuple(self.tokens.shape)}".encode())
        digest.update(self.tokens.contiguous().numpy().astype("<i8").tobytes())
        return digest.hexdigest()

    def __len__(self) -> int:
        return self.tokens.shape[0]

    @property
    def length(self) -> int:
        """Tokens in a window."""
        return self.tokens.shape[1]


def calibration_windows(
    corpus: Corpus, tokenizer: PreTrainedTokenizerBase, *, count: int, length: int, seed: int
) -> TokenWindows:
    """`count` windows of `length` tokens at random places; two may overlap.

    Each starts at `randint(0, L - length - 1)`, inclusive, of a text of L tokens. With
    `corpus.by_document` documents are drawn uniformly until one is longer than `length`,
    then its offset, all from one stream of Python's `random.Random(seed)`.

    Raises:
        InputError: the text is too short; the message has the counts.
    """
    if count < 1 or length < 2:
        raise InputError(f"cannot draw {count} windows of {length} tokens{_LEAST}")
    stream = random.Random(seed)
    if corpus.by_document:
        texts = _long_documents(corpus, tokenizer, length, stream)
    else:
        texts = itertools.repeat(_tokenize_whole(corpus, tokenizer, more_than=length))
    windows = [_random_window(next(texts), length, stream) for _ in range(count)]
    return TokenWindows(tokens=torch.stack(windows), label=corpus.label)


def evaluation_windows(
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    *,
    limit: int | None = None,
    stride: int | None = None,
) -> TokenWindows:
    """The text cut into windows of `length` tokens, from its start; the tail is dropped.

    `limit` keeps the first windows only. With `stride` below `length` successive windows
    start `stride` tokens apart and overlap; `perplexity` wants the same stride.

    Raises:
        InputError: the text does not fill one window, or an option is out of range.
    """
    if length < 2 or (limit is not None and limit < 1):
        raise InputError(f"cannot cut {limit or 'any'} windows of {length} tokens{_LEAST}")
    if stride is not None and not 1 <= stride <= length:
        raise InputError(f"stride {stride} must be between 1 and the window length {length}")
    tokens = _tokenize_whole(corpus, tokenizer, more_than=length - 1)
    windows = tokens.unfold(0, length, stride or length)
    bounds = [bound for bound in (limit, corpus.most_windows) if bound is not None]
    chosen = windows[: min(bounds, default=len(windows))].clone()
    return TokenWindows(tokens=chosen, label=corpus.label)


def _long_documents(
    corpus: Corpus, tokenizer: PreTrainedTokenizerBase, length: int, stream: random.Random
) -> Iterator[Int64[Tensor, " tokens"]]:
    """Uniformly drawn documents of more than `length` tokens."""
    short: dict[int, int] = {}  # place -> tokens, so that none is tokenized again
    if not corpus.documents:
        raise InputError(_too_short(corpus, "no document", length))
    while True:
        for _ in range(MOST_DRAWS):
            place = stream.randint(0, len(corpus.documents) - 1)
            if place in short:
                continue
            tokens = _tokenize(tokenizer, corpus.documents[place])
            if len(tokens) > length:
                yield tokens
                break
            short[place] = len(tokens)
        else:
            longest = max(short.values())
            counts = f"{MOST_DRAWS} draws of a document, the longest with {longest} tokens"
            raise InputError(_too_short(corpus, counts, length))


def _random_window(
    tokens: Int64[Tensor, " tokens"], length: int, stream: random.Random
) -> Int64[Tensor, " length"]:
    start = stream.randint(0, len(tokens) - length - 1)
    return tokens[start : start + length]


def _tokenize_whole(
    corpus: Corpus, tokenizer: PreTrainedTokenizerBase, more_than: int
) -> Int64[Tensor, " tokens"]:
    tokens = _tokenize(tokenizer, corpus.text)
    if len(tokens) <= more_than:
        raise InputError(_too_short(corpus, f"{len(tokens)} tokens", more_than))
    return tokens


def _tokenize(tokenizer: PreTrainedTokenizerBase, text: str) -> Int64[Tensor, " tokens"]:
    # verbose=False: the text is meant to be longer than the model's context.
    return torch.tensor(tokenizer(text, verbose=False)["input_ids"], dtype=torch.int64)


def _too_short(corpus: Corpus, counts: str, more_than: int) -> str:
    return (
        f"the text {corpus.label!r} is too short: {counts}, and a window here takes more than "
        f"{more_than} tokens; use a longer text or shorter windows"
    )
