"""Added words that take more or less of a text in llama.cpp than in transformers.

An added word of a tokenizer.json may take the blanks before or behind it with it (lstrip, rstrip),
or be found only where no letter touches it (single_word). A GGUF file has no place for that, and
llama.cpp leaves blanks in the text, unless the file calls the model Phi-3: then the added words
take those behind them, but for three of them, and all of Phi-3's must be there
(src/llama-vocab.cpp). So a file has that name only where the words are like that.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from q2n.option_types import shown
from q2n.patterns import listed

_RULES = ("lstrip", "rstrip", "single_word")
_PHI3 = ("phi-3", "phi3")
_BARE = ("<unk>", "<s>", "<|endoftext|>")
"""Words of Phi-3 that take no blanks."""
_NEEDED = {*_BARE, "</s>"}


def name_in_file(name: str, added: Sequence[Mapping[str, Any]]) -> str | None:
    """The name of a model with these added words, as a tokenizer.json describes them; None: it
    would make llama.cpp treat them otherwise."""
    return name if not _says_phi3(name) or _as_in_phi3(added) else None


def blanks_notes(name: str, added: Sequence[Mapping[str, Any]]) -> list[str]:
    """What to say of the added words in the file of a model of this name."""
    if _says_phi3(name) and _as_in_phi3(added):
        return []
    other = [shown(entry["content"]) for entry in added if any(_rules(entry))]
    if not other:
        return []
    return [
        f"llama.cpp leaves blanks and letters beside {listed(other)} in the text, which the "
        f"tokenizer does not ({', '.join(_RULES)} of added words): tokens can differ there"
    ]


def _says_phi3(name: str) -> bool:
    return any(part in name.lower() for part in _PHI3)


def _as_in_phi3(added: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the words are what llama.cpp takes those of a Phi-3 for."""
    rules = {entry["content"]: _rules(entry) for entry in added}
    return rules.keys() >= _NEEDED and all(
        found == (False, word not in _BARE, False) for word, found in rules.items()
    )


def _rules(entry: Mapping[str, Any]) -> tuple[bool, ...]:
    return tuple(bool(entry.get(rule)) for rule in _RULES)
