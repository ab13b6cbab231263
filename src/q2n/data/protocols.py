"""Protocols: how a text is cut into windows and which predictions in them count.

Two perplexities can be compared only where both were measured by one protocol, so its name stands
in every record. Windows always have the length that was asked for; where a protocol has them
begin with BOS, the first token is replaced, so that the predicted tokens are the same with and
without it. "BOS" is the token that the model's own tokenizer puts before a text; windows of a
tokenizer that puts none there are left as they are.

- q2n: BOS; windows side by side, or overlapping with a stride; every prediction counts.
- gptq: the tables of GPTQ, LeanQuant, QuIP and QuaRot. No BOS; PTB's *validation* split; C4: 256
  windows at random places of validation documents longer than a window, from a seed of their own.
- gptq-new: GPTQ's `--new-eval`, and the tables of PB-LLM and OWQ. No BOS; PTB's *test* split; C4:
  the first 256 windows of the first 1100 validation documents.
- llama.cpp: `llama-perplexity`. BOS; windows of 512 tokens; only the second half of a window is
  scored: of n tokens those at n/2 .. n-2 predict the next one. A .raw file is read as it is, with
  no rows joined.

The split fixes how PTB is joined (`corpora.py`). What a protocol says of a corpus holds for
evaluation; in calibration it decides about BOS alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from q2n.errors import InputError

ProtocolName = Literal["q2n", "gptq", "gptq-new", "llama.cpp"]


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """One way to measure on a text."""

    bos: bool
    """Whether windows begin with BOS where the tokenizer adds one."""
    length: int | None = None
    """Tokens of a window unless another length is asked for; None: it has no such rule."""
    second_half: bool = False
    """Whether the first half of a window is context only."""
    strides: bool = False
    """Whether windows may overlap."""
    verbatim: bool = False
    """Whether WikiText-2's lines are taken as they are, not as rows that are joined."""
    splits: Mapping[str, str] = field(default_factory=dict)
    """Corpus -> the split that it is measured on, whichever is asked for."""
    drawn: Mapping[str, int] = field(default_factory=dict)
    """Corpus -> windows that are drawn at random, each from a document longer than a window."""

    def scored(self, length: int) -> int:
        """How many of the last predictions in a window of `length` tokens count."""
        return length - length // 2 - 1 if self.second_half else length - 1


_TEST = {"wikitext2": "test", "c4": "validation"}
PROTOCOLS: Mapping[ProtocolName, Protocol] = {
    "q2n": Protocol(bos=True, strides=True),
    "gptq": Protocol(bos=False, splits={**_TEST, "ptb": "validation"}, drawn={"c4": 256}),
    "gptq-new": Protocol(bos=False, splits={**_TEST, "ptb": "test"}),
    "llama.cpp": Protocol(bos=True, length=512, second_half=True, verbatim=True),
}


def measured_split(name: ProtocolName, corpus: str, asked: str | None) -> str:
    """The split to measure on: the one that the protocol fixes for the corpus, else the one asked
    for, else "test".

    Raises:
        InputError: another one is asked for than the protocol fixes.
    """
    fixed = PROTOCOLS[name].splits.get(corpus)
    if fixed is not None and asked not in (None, fixed):
        raise InputError(
            f"the protocol {name!r} measures {corpus} on the split {fixed!r}, not on {asked!r}; "
            "leave --split out, or use --protocol q2n"
        )
    return fixed or asked or "test"


assert tuple(PROTOCOLS) == get_args(ProtocolName)
