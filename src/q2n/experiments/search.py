"""Search over options: which values of a few options do best, by a score that costs a run each.

Grid search tries every combination. Coordinate descent begins with the first value of each option,
tries all values of one option with the others held, keeps the best, goes on with the next option,
and ends when a whole round has changed nothing. No combination is tried twice. Ties keep the
earlier value, so that noise-free equal scores do not move anything.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any

Choice = Mapping[str, Any]
Score = Callable[[Choice], float]
"""Of a choice of values; less is better."""


def grid(over: Mapping[str, Sequence[Any]], score: Score) -> dict[str, Any]:
    """The best of all combinations."""
    choices = [dict(zip(over, values, strict=True)) for values in product(*over.values())]
    return min(choices, key=score)


def coordinate_descent(over: Mapping[str, Sequence[Any]], score: Score) -> dict[str, Any]:
    """The best that changing one option at a time leads to from the first values."""
    known: dict[str, float] = {}

    def once(choice: Choice) -> float:
        place = repr([choice[name] for name in over])  # a value may be a list
        if place not in known:
            known[place] = score(choice)
        return known[place]

    best: dict[str, Any] = {name: values[0] for name, values in over.items()}
    while True:
        before = dict(best)
        for name, values in over.items():
            others = [value for value in values if value != best[name]]
            best = min([best, *({**best, name: value} for value in others)], key=once)
        if best == before:
            return best


METHODS: dict[str, Callable[[Mapping[str, Sequence[Any]], Score], dict[str, Any]]] = {
    "coordinate": coordinate_descent,
    "grid": grid,
}
