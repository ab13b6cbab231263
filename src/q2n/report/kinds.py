"""The layers of a checkpoint's record by kind: what a figure over the blocks is drawn from."""

from collections.abc import Mapping
from typing import Any

from q2n.report.experiment import KindOfLayer

DIGITS = 4
"""Significant ones of what is kept for figures."""


def kinds_of(
    layers: Mapping[str, Mapping[str, Any]], seconds: Mapping[str, Mapping[str, float]]
) -> dict[str, KindOfLayer]:
    """Kind (the last word of a name: q_proj) -> its layers in the order of the record.

    Args:
        layers: name -> what `q2n.json` says of it.
        seconds: name -> what took how long, of `q2n_timings.json`.
    """
    names: dict[str, list[str]] = {}
    for name in layers:
        names.setdefault(name.rpartition(".")[2], []).append(name)
    return {
        kind: _kind([layers[name] for name in own], own, [seconds.get(name, {}) for name in own])
        for kind, own in names.items()
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
