"""Names of layers and tensors: patterns, which say what an option is about, and lists of them."""

from collections.abc import Sequence
from fnmatch import fnmatchcase


def matches(pattern: str, name: str) -> bool:
    """Whether the layer of this full name, e.g. `model.layers.3.mlp.down_proj`, fits a pattern.

    As the shell matches file names: `*` is anything, dots included, `?` one character, `[03]` one
    of these; upper and lower case differ. A pattern without a dot and without `*`, `?`, `[` also
    matches the last part of a name: `down_proj` is every down projection.
    """
    plain = not any(character in pattern for character in ".*?[")
    return fnmatchcase(name, pattern) or (plain and name.rpartition(".")[2] == pattern)


def listed(names: Sequence[str], shown: int = 3) -> str:
    """The first names, and how many there are if that is not all of them."""
    first = ", ".join(names[:shown])
    return f"{first}, .. ({len(names)} in all)" if len(names) > shown else first
