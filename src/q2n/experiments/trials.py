"""What a search has tried, kept in a file after every trial: an interrupted search goes on."""

import json
from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Any

from q2n.disk.whole import write_whole
from q2n.experiments.search import Score


class Trials:
    """Choices and their divergences, in the order in which they were first tried. A file that is
    damaged is begun anew: the trials cost time alone."""

    def __init__(self, file: Path):
        self._file = file
        self.tried: list[dict[str, Any]] = _read(file)

    def once(self, score: Score) -> Score:
        """`score`, which is asked only for what no trial has tried."""

        def known(choice: Mapping[str, Any]) -> float:
            for trial in self.tried:
                if choice.items() <= trial.items():
                    return trial["divergence"]
            divergence = score(choice)
            self.tried.append({**choice, "divergence": divergence})
            write_whole(self._file, json.dumps(self.tried, indent=1).encode())
            return divergence

        return known


def _read(file: Path) -> list[dict[str, Any]]:
    """What stands in a file; nothing where they are no trials."""
    try:
        trials = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError, RecursionError):
        return []
    whole = isinstance(trials, list) and all(map(_is_trial, trials))
    return trials if whole else []


def _is_trial(value: Any) -> bool:
    number = value.get("divergence") if isinstance(value, dict) else None
    return isinstance(number, int | float) and not isinstance(number, bool) and isfinite(number)
