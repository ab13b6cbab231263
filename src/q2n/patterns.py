"""Patterns of layer names: which layers an option is about."""

from fnmatch import fnmatchcase


def matches(pattern: str, name: str) -> bool:
    """Whether the layer of this full name, e.g. `model.layers.3.mlp.down_proj`, fits a pattern.

    As the shell matches file names: `*` is anything, dots included, `?` one character, `[03]` one
    of these; upper and lower case differ. A pattern without a dot and without `*`, `?`, `[` also
    matches the last part of a name: `down_proj` is every down projection.
    """
    plain = not any(character in pattern for character in ".*?[")
    return fnmatchcase(name, pattern) or (plain and name.rpartition(".")[2] == pattern)
