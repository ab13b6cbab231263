"""The words of a tokenizer as a GGUF file holds them (`tokenizer.ggml.*`).

Two kinds of tokenizer.json have a counterpart in llama.cpp:

    gpt2    bytes as letters, cut into words (pre_tokenizers.py), merged in the order of the merges
    llama   letters, `▁` for a blank, bytes for what is not in the vocabulary; two neighbours
            that make a word are merged, the word with the highest score first

The second was sentencepiece's. Its merges are all ways to make a word, in the order of the words'
scores; so the place of a word's first merge, negative, is a score that gives the same order.

What a tokenizer does is read from transformers' own object of it, not from files that it may
overrule.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import GGUFWriter, Keys, TokenType
from transformers import PreTrainedTokenizerBase

from q2n.data.tokenizer import load_tokenizer
from q2n.errors import InputError
from q2n.formats.gguf.pre_tokenizers import pre_tokenizer_name
from q2n.option_types import shown

_SPECIAL = ("bos", "eos", "unk", "sep", "pad", "mask")
_BYTE = re.compile("<0x[0-9A-F]{2}>").fullmatch
_DEFAULT = "default"
"""Name of the chat template where there is one only."""
_UNSCORED = -1000.0
"""Of words that no merge makes; only their order among each other would count."""


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """Words and what is done with them."""

    model: str
    """gpt2 or llama."""
    pre: str
    """llama.cpp's name for the cut into words."""
    tokens: Sequence[str]
    """One for each row of the embeddings."""
    types: Sequence[TokenType]
    merges: Sequence[str] = ()
    """Of gpt2."""
    scores: Sequence[float] = ()
    """Of llama."""
    special: Mapping[str, int]
    """"bos", "eos", ... -> number of the word."""
    adds: Mapping[str, bool]
    """"bos", "eos" -> whether it is put around a text."""
    space_before: bool
    """Whether a blank is put before a text."""
    chat_templates: Mapping[str, str]
    """By name; one alone is called "default"."""
    added: Sequence[Mapping[str, Any]]
    """Added words, as a tokenizer.json describes them."""
    notes: Sequence[str] = ()
    """What llama.cpp does otherwise, in sentences without a full stop."""

    def add_to(self, writer: GGUFWriter) -> None:
        """Write everything."""
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        writer.add_token_merges(self.merges)
        writer.add_token_scores(self.scores)
        for name, number in self.special.items():
            getattr(writer, f"add_{name}_token_id")(number)
        writer.add_add_bos_token(self.adds["bos"])
        writer.add_add_eos_token(self.adds["eos"])
        writer.add_add_space_prefix(self.space_before)
        for name, template in self.chat_templates.items():
            writer.add_string(_template_key(name), template)


def read_vocabulary(
    folder: Path | None, size: int, *, trust_remote_code: bool = False
) -> Vocabulary:
    """The vocabulary of the tokenizer in a checkpoint folder, for `size` rows of embeddings.

    Raises:
        InputError: there is no tokenizer, or llama.cpp has nothing like it.
    """
    if folder is None:
        raise InputError(
            "a GGUF file holds the tokenizer, and a model in memory comes without; save model and "
            "tokenizer to a folder and give that, or use another --format"
        )
    tokenizer = load_tokenizer(folder, trust_remote_code)
    if not getattr(tokenizer, "is_fast", False):
        raise InputError(
            f"{folder}: its tokenizer is Python code ({type(tokenizer).__name__}), and a GGUF file "
            "holds those of a tokenizer.json; use another --format"
        )
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    try:
        return _vocabulary(tokenizer, described, size)
    except InputError as cause:
        raise InputError(f"{folder}: {cause}") from cause


def _vocabulary(
    tokenizer: PreTrainedTokenizerBase, described: Mapping[str, Any], size: int
) -> Vocabulary:
    model = described["model"]
    if model["type"] != "BPE" or _suffixes(model):
        raise InputError(
            f"its tokenizer is of the kind {shown(model['type'])}, and llama.cpp has counterparts "
            "of BPE without prefixes and suffixes; use another --format"
        )
    tokens, types = _words(described, size)
    own = _of_letters(described, tokens, types) if model["byte_fallback"] else _of_bytes(described)
    return Vocabulary(
        tokens=tokens,
        types=types,
        special=_special_tokens(tokenizer, size),
        adds=_added_around(tokenizer),
        chat_templates=_chat_templates(tokenizer),
        added=described["added_tokens"],
        **own,
    )


def _suffixes(model: Mapping[str, Any]) -> bool:
    names = ("continuing_subword_prefix", "end_of_word_suffix", "dropout")
    return any(model.get(name) for name in names)


def _words(described: Mapping[str, Any], size: int) -> tuple[list[str], list[TokenType]]:
    """Words and their types by number. Rows without a word are called [PADn]."""
    tokens = [f"[PAD{number}]" for number in range(size)]
    types = [TokenType.UNUSED] * size
    words = described["model"]["vocab"]
    added = described["added_tokens"]
    most = max([*words.values(), *(entry["id"] for entry in added)])
    if most >= size:
        raise InputError(f"its tokenizer has word {most}, and the embeddings have {size} rows")
    for word, number in words.items():
        tokens[number], types[number] = word, TokenType.NORMAL
    for entry in added:
        tokens[entry["id"]] = _sought(entry, described)
        types[entry["id"]] = TokenType.CONTROL if entry["special"] else TokenType.USER_DEFINED
    return tokens, types


def _sought(entry: Mapping[str, Any], described: Mapping[str, Any]) -> str:
    """An added word as it stands in a text: llama.cpp looks for it before it changes blanks."""
    changed = entry["normalized"] and described["model"]["byte_fallback"]
    return entry["content"].replace("▁", " ") if changed else entry["content"]


def _of_bytes(described: Mapping[str, Any]) -> dict[str, Any]:
    """What a byte-level tokenizer has of its own."""
    normalizer = described.get("normalizer")
    if normalizer not in (None, {"type": "NFC"}):  # composed letters are what texts consist of
        raise InputError(
            f"its tokenizer changes the text ({shown(normalizer)}), and llama.cpp does not; use "
            "another --format"
        )
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in _merges(described)]
    pre = pre_tokenizer_name(described)
    return {"model": "gpt2", "pre": pre, "merges": merges, "space_before": False}


def _of_letters(
    described: Mapping[str, Any], tokens: list[str], types: list[TokenType]
) -> dict[str, Any]:
    """What a tokenizer of letters has of its own; marks the words that are bytes."""
    for number, token in enumerate(tokens):
        if _BYTE(token) and types[number] == TokenType.NORMAL:
            types[number] = TokenType.BYTE
    return {
        "model": "llama",
        "pre": "default",
        "scores": _scores(described, tokens),
        **_blank_first(described),
    }


def _scores(described: Mapping[str, Any], tokens: Sequence[str]) -> list[float]:
    """Minus the place of the first merge that makes a word."""
    score_of: dict[str, float] = {}
    last = None
    for place, pair in enumerate(_merges(described)):
        left, right = pair.split(" ") if isinstance(pair, str) else pair
        word = left + right
        if word != last and word in score_of:
            raise InputError(
                f"its tokenizer merges {shown(word)} at several places of its order, which the "
                "scores of llama.cpp cannot say; use another --format"
            )
        score_of.setdefault(word, -float(place))
        last = word
    lowest = min(score_of.values(), default=0.0) + _UNSCORED
    return [score_of.get(token, lowest) for token in tokens]


def _merges(described: Mapping[str, Any]) -> list[Any]:
    return described["model"]["merges"]


_BLANKS = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
_BETWEEN_BLANKS = {  # finds nothing once blanks are replaced
    "type": "Split",
    "pattern": {"String": " "},
    "behavior": "MergedWithPrevious",
    "invert": False,
}


_OTHER_BLANKS = (
    "llama.cpp puts a blank before every text and after every special word, transformers only "
    "where none stands already: tokens can differ there"
)


def _blank_first(described: Mapping[str, Any]) -> dict[str, Any]:
    """Whether a blank is put before a text.

    Raises:
        InputError: something else is done to the text than blanks being replaced.
    """
    normalizer: Any = described.get("normalizer")
    pre_tokenizer: Any = described.get("pre_tokenizer")
    steps = normalizer["normalizers"] if _is_sequence(normalizer) else [normalizer]
    if pre_tokenizer in (None, _BETWEEN_BLANKS):
        if steps == [_BLANKS]:
            return {"space_before": False}
        if steps == [{"type": "Prepend", "prepend": "▁"}, _BLANKS]:
            return {"space_before": True}
    if normalizer is None and _is_metaspace(pre_tokenizer):
        before = pre_tokenizer["prepend_scheme"] != "never"
        return {"space_before": before, "notes": (_OTHER_BLANKS,) if before else ()}
    raise InputError(
        f"its tokenizer changes the text ({shown(normalizer)}, {shown(pre_tokenizer)}) otherwise "
        "than llama.cpp does; use another --format"
    )


def _is_sequence(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") == "Sequence"


def _is_metaspace(part: Any) -> bool:
    return (
        isinstance(part, Mapping)
        and part.get("type") == "Metaspace"
        and part.get("replacement") == "▁"
        and part.get("split") is False
    )


def _special_tokens(tokenizer: Any, size: int) -> dict[str, int]:
    """Numbers of the special words that a tokenizer has."""
    numbers = {name: getattr(tokenizer, f"{name}_token_id", None) for name in _SPECIAL}
    return {name: x for name, x in numbers.items() if isinstance(x, int) and 0 <= x < size}


def _added_around(tokenizer: Any) -> dict[str, bool]:
    """Which special words are put around a text, seen on one.

    Raises:
        InputError: others than one "bos" before and one "eos" after it.
    """
    text = "a"
    plain = tokenizer(text, add_special_tokens=False).input_ids
    whole = tokenizer(text).input_ids
    for before in (False, True):
        for after in (False, True):
            first = [tokenizer.bos_token_id] if before else []
            last = [tokenizer.eos_token_id] if after else []
            if whole == [*first, *plain, *last]:
                return {"bos": before, "eos": after}
    raise InputError(
        f"its tokenizer makes {whole} of {plain}, and llama.cpp puts the begin of text before it, "
        "the end after it, or neither; use another --format"
    )


def _chat_templates(tokenizer: Any) -> dict[str, str]:
    templates = tokenizer.chat_template
    named = templates if isinstance(templates, Mapping) else {_DEFAULT: templates}
    return {name: template for name, template in named.items() if template}


def _template_key(name: str) -> str:
    """The entry that holds a chat template, as gguf-py calls it, which would list the names in
    another order each time."""
    if name == _DEFAULT:
        return Keys.Tokenizer.CHAT_TEMPLATE
    return Keys.Tokenizer.CHAT_TEMPLATE_N.format(name=re.sub("[^A-Za-z0-9]", "_", name))
