"""Divergences of cells with their errors: of each, and of the difference of two on one text."""

import math
import statistics
from collections.abc import Sequence
from typing import Any

Lines = Sequence[dict[str, Any]]
"""The cells of one row, which differ in the seed."""


def divergence(lines: Lines, text: int = 0) -> str:
    """Mean over seeds, its standard error from the spread of the windows, and that of each seed."""
    value, error = _mean_and_error(_over_seeds(lines, text))
    seeds = "/".join(f"{line['divergence'][text]:.3f}" for line in lines)
    return f"{value:.3f} +- {error:.3f} ({seeds})"


def difference(lines: Lines, others: Lines, text: int = 0) -> str:
    """Divergence less that of another row, paired by windows, over the seeds that both have."""
    common = {line["seed"] for line in lines} & {line["seed"] for line in others}
    ours, theirs = (
        _over_seeds([line for line in row if line["seed"] in common], text)
        for row in (lines, others)
    )
    value, error = _mean_and_error([a - b for a, b in zip(ours, theirs, strict=True)])
    return f"{value:+.3f} +- {error:.3f}"


def same_top(lines: Lines, text: int = 0) -> str:
    """Mean share over seeds, in percent."""
    return f"{100 * statistics.mean(line['same_top'][text] for line in lines):.1f}"


def _over_seeds(lines: Lines, text: int) -> list[float]:
    """Divergence of each window, mean over seeds."""
    windows = [line["by_window"][text] for line in lines]
    return [statistics.mean(values) for values in zip(*windows, strict=True)]


def _mean_and_error(windows: Sequence[float]) -> tuple[float, float]:
    return statistics.mean(windows), statistics.stdev(windows) / math.sqrt(len(windows))
