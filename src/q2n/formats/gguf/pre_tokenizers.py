"""How a byte-level tokenizer cuts text into words before it merges: llama.cpp's names for it.

A GGUF file cannot describe the cut, it can only name one that llama.cpp has in its code
(src/llama-vocab.cpp). So the pre-tokenizer of tokenizer.json must be one of these, part by part;
a near miss would give other tokens in places that no short test looks at.
"""

from collections.abc import Mapping
from typing import Any

from q2n.errors import InputError
from q2n.option_types import shown

_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CL100K = rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}{{1,3}}|{_REST}"
_QWEN2 = rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}|{_REST}"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+",
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*",
)
_SLASHES = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_TEKKEN = rf"{'|'.join(_CASED)}|\p{{N}}|{_SLASHES}"
_GPT4O = rf"{'|'.join(x + _CONTRACTIONS + '?' for x in _CASED)}|\p{{N}}{{1,3}}|{_SLASHES}"

_BY_PATTERN = {
    (_CL100K, True): "llama-bpe",
    (_CL100K, False): "dbrx",
    (_QWEN2, False): "qwen2",
    (_TEKKEN, True): "tekken",
    (_GPT4O, False): "gpt-4o",
}
"""(pattern, whether words of the vocabulary are taken without merges) -> name."""


def pre_tokenizer_name(tokenizer: Mapping[str, Any]) -> str:
    """llama.cpp's name for the cut of a byte-level tokenizer, from its tokenizer.json.

    Raises:
        InputError: it has none.
    """
    parts = [_plain(part) for part in _parts(tokenizer.get("pre_tokenizer"))]
    whole_words = bool(tokenizer["model"].get("ignore_merges"))
    if parts == [_BYTES_BY_WORDS] and not whole_words:
        return "gpt-2"
    if parts == [{"type": "Digits", "individual_digits": True}, _BYTES_BY_WORDS]:
        return "smollm"
    if len(parts) == 2 and parts[1] == _BYTES and parts[0].get("type") == "Split":
        pattern = parts[0].get("pattern", {}).get("Regex")
        found = _BY_PATTERN.get((pattern, whole_words))
        if found is not None and parts[0] == _split(pattern):
            return found
    raise InputError(
        f"llama.cpp has no name for the pre-tokenizer of this tokenizer ({shown(parts)}); known "
        f"are gpt-2, smollm, {', '.join(_BY_PATTERN.values())}; use another --format"
    )


_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
_BYTES_BY_WORDS = {**_BYTES, "use_regex": True}


def _split(pattern: str | None) -> dict[str, Any]:
    return {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }


def _parts(pre_tokenizer: Any) -> list[Any]:
    if isinstance(pre_tokenizer, Mapping) and pre_tokenizer.get("type") == "Sequence":
        return list(pre_tokenizer["pretokenizers"])
    return [] if pre_tokenizer is None else [pre_tokenizer]


def _plain(part: Mapping[str, Any]) -> dict[str, Any]:
    """Without what does not touch the cut."""
    return {key: value for key, value in part.items() if key != "trim_offsets"}
