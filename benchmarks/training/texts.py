"""Texts in a train and a held-out part, and a tokenizer of bytes trained on the train parts."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Int64
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from q2n.data.corpora import NAMES, load_corpus

WORDS, END = 4096, "<|endoftext|>"
"""Words of the tokenizer at most; its only special token, which it adds nowhere by itself."""

HELD_OUT = 0.1
"""Of a file: its last part, which is cut at the end of a line."""


@dataclass(frozen=True)
class Text:
    """One text, cut in two."""

    name: str
    train: str
    held_out: str


@dataclass(frozen=True, eq=False)
class Tokens:
    """The tokens of one text."""

    name: str
    train: Int64[Tensor, " tokens"]
    held_out: Int64[Tensor, " held"]


def load_text(name_or_path: str, data_dir: str | None = None) -> Text:
    """A named corpus with its own splits, or a file whose last tenth is held out.

    Raises:
        InputError: as `load_corpus`.
    """
    if name_or_path in NAMES:
        train, held_out = (
            "".join(load_corpus(name_or_path, split, data_dir=data_dir).parts)
            for split in ("train", "validation")
        )
        return Text(name_or_path, train, held_out)
    text = "".join(load_corpus(name_or_path, "train").parts)
    cut = text.find("\n", int(len(text) * (1 - HELD_OUT))) + 1
    return Text(Path(name_or_path).stem, text[:cut], text[cut:])


def trained_tokenizer(texts: Sequence[Text]) -> PreTrainedTokenizerFast:
    """Pairs of bytes, cut as GPT-2 does; the same texts in the same order give the same words."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=WORDS, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    lines = (line for text in texts for line in text.train.splitlines(keepends=True))
    tokenizer.train_from_iterator(lines, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END, eos_token=END)


def tokens_of(text: Text, tokenizer: PreTrainedTokenizerFast, length: int) -> Tokens:
    """Both parts as tokens.

    Raises:
        ValueError: a part is no longer than a window of `length` tokens.
    """
    train, held_out = (
        torch.tensor(tokenizer(part).input_ids) for part in (text.train, text.held_out)
    )
    if min(len(train), len(held_out)) <= length:
        raise ValueError(
            f"the text {text.name} has {len(train)} tokens to train on and {len(held_out)} held "
            f"out; both must be more than --length {length}"
        )
    return Tokens(text.name, train, held_out)


def drawn_batch(texts: Sequence[Tokens], batch: int, length: int) -> Int64[Tensor, "batch length"]:
    """Windows at random places; every text is as likely as any other, however long it is."""
    windows = []
    for number in torch.randint(len(texts), (batch,)).tolist():
        train = texts[number].train
        place = int(torch.randint(len(train) - length, ()))
        windows.append(train[place : place + length])
    return torch.stack(windows)


def held_out_windows(text: Tokens, length: int, most: int) -> Int64[Tensor, "windows length"]:
    """Windows side by side, spread evenly over the held-out part, `most` of them at most."""
    windows = text.held_out[: len(text.held_out) // length * length].reshape(-1, length)
    return windows[:: max(1, len(windows) // most)][:most]


def unigram_loss(text: Tokens, windows: Int64[Tensor, "windows length"]) -> float:
    """Nats a token of the best guess that looks at no other token: frequencies in the train part,
    one added to each count. The first token of a window is no prediction."""
    counts = torch.bincount(text.train, minlength=WORDS).double() + 1
    return float(-(counts / counts.sum()).log()[windows[:, 1:]].mean())
