"""The layers of a checkpoint's record by kind: what a figure over the blocks is drawn from."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from q2n.report.experiment import KindOfLayer

DIGITS = 4
"""Significant ones of what is kept for figures."""


def kinds_of(
    layers: Mapping[str, Mapping[str, Any]], seconds: Mapping[str, Mapping[str, float]]
) -> dict[str, KindOfLayer]:
    """Kind (`kind_names`) -> its layers in the order of the record.

    Args:
        layers: name -> what `q2n.json` says of it.
        seconds: name -> what took how long, of `q2n_timings.json`.
    """
    names: dict[str, list[str]] = {}
    for name, kind in kind_names(layers).items():
        names.setdefault(kind, []).append(name)
    return {
        kind: _kind([layers[name] for name in own], own, [seconds.get(name, {}) for name in own])
        for kind, own in names.items()
    }


def kind_names(layers: Iterable[str]) -> dict[str, str]:
    """Name of a linear -> its kind: the last word (q_proj), or the last two where a block has two
    such linears that are no experts (attn.c_proj and mlp.c_proj of GPT-2)."""
    words = {name: [x for x in name.split(".") if not x.isdecimal()] or [name] for name in layers}
    alone = [name for name, parts in words.items() if name.count(".") - len(parts) < 1]
    times = Counter((_block(name), words[name][-1]) for name in alone)
    twice = {word for (_, word), count in times.items() if count > 1}
    return {
        name: ".".join(parts[-2:] if parts[-1] in twice else parts[-1:])
        for name, parts in words.items()
    }


def _kind(
    layers: list[Mapping[str, Any]], names: list[str], seconds: list[Mapping[str, float]]
) -> KindOfLayer:
    whats = dict.fromkeys(what for times in seconds for what in times)
    return KindOfLayer(
        blocks=[_block(name) for name in names],
        output_error=_values(layers, "output_error") or [None] * len(layers),
        output_error_before=_values(layers, "output_error_before"),
        alpha=_values(layers, "alpha_mean"),
        output_scales=_values(layers, "scales_mean"),
        seconds={what: round(sum(x.get(what, 0.0) for x in seconds), 3) for what in whats},
    )


def _values(layers: list[Mapping[str, Any]], key: str) -> list[float | None]:
    """Of all layers; empty where none has one."""
    values = [layer.get(key) for layer in layers]
    if all(value is None for value in values):
        return []
    return [None if value is None else float(f"{value:.{DIGITS}g}") for value in values]


def _block(name: str) -> int:
    """The first number in a name; one that no model has is none."""
    numbers = (x for x in name.split(".") if x.isascii() and x.isdecimal() and len(x) < 9)
    return next((int(number) for number in numbers), 0)
