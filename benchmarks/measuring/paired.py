"""Divergences of cells with their errors, as texts: of each, and of the difference of two."""

import statistics
from collections.abc import Sequence
from typing import Any

from q2n.report import paired

Lines = Sequence[dict[str, Any]]
"""The cells of one row, which differ in the seed."""


def divergence(lines: Lines, text: int = 0) -> str:
    """Mean over seeds, its standard error from the spread of the windows, and that of each seed."""
    found = paired.over_windows(_windows(lines, text))
    seeds = "/".join(f"{line['divergence'][text]:.3f}" for line in lines)
    return f"{found.value:.3f} +- {found.error:.3f} ({seeds})"


def difference(lines: Lines, others: Lines, text: int = 0) -> str:
    """Divergence less that of another row, paired by windows, over the seeds that both have."""
    found = paired.difference(_windows(lines, text), _windows(others, text))
    assert found is not None, "the rows share a seed"
    return f"{found.value:+.3f} +- {found.error:.3f}"


def same_top(lines: Lines, text: int = 0) -> str:
    """Mean share over seeds, in percent."""
    return f"{100 * statistics.mean(line['same_top'][text] for line in lines):.1f}"


def _windows(lines: Lines, text: int) -> paired.Windows:
    return {line["seed"]: line["by_window"][text] for line in lines}
