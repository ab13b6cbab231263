"""Linears whose outputs become attention scores: what AWQ's released code never clips.

It asks for these parts of a name; so does this.
"""

_PARTS = ("q_", "k_", "query", "key", "Wqkv")


def feeds_scores(name: str) -> bool:
    """Whether the last part of a linear's name says that it makes queries or keys."""
    last = name.rpartition(".")[2]
    return any(part in last for part in _PARTS)
