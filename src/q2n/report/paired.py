r"""Means over seeds, their errors, and the difference of two rows on one text.

A divergence is known window by window, d[s, w] for seed s. Two things move the mean: another text
of the same kind and other seeds.

    value = mean over s, w of d       error  = std over w of (mean over s of d) / sqrt(windows)
                                      spread = std over s of (mean over w of d)

The error of a difference is that of the windows' differences, seed by seed: what makes a window
hard for both rows cancels. Its total error has the seeds in it too,

    total^2 = error^2 + spread^2 / seeds.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from q2n.report.student import chance, degrees_of_freedom

_BY_CHANCE = math.erfc(math.sqrt(2))
"""How often chance exceeds twice an error that is known: 4.6 %."""

Windows = Mapping[object, Sequence[float]]
"""Seed -> one value a window."""


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds."""

    value: float
    error: float | None = None
    """Standard error that comes from the text; None where nothing tells."""
    spread: float | None = None
    """Standard deviation over seeds; None of a single seed."""
    seeds: int = 1
    windows: int | None = None
    """That tell the error; None: it is taken for known."""

    @property
    def total_error(self) -> float | None:
        """Of text and seeds together, as far as they are known; None where neither is."""
        if self.error is None and self.spread is None:
            return None
        return math.hypot(self.error or 0.0, (self.spread or 0.0) / math.sqrt(self.seeds))

    @property
    def is_certain(self) -> bool:
        """Whether it differs from 0 by more than twice its total error; by more than that where
        few windows or seeds tell the error, so that chance does it no more often (Student's t)."""
        total = self.total_error
        if not total:
            return total is not None and self.value != 0
        return chance(abs(self.value) / total, self._freedom) < _BY_CHANCE

    @property
    def _freedom(self) -> float:
        """Degrees of freedom of the total error."""
        of_text = (self.error or 0.0) ** 2, (self.windows or math.inf) - 1
        of_seeds = (self.spread or 0.0) ** 2 / self.seeds, self.seeds - 1
        return degrees_of_freedom(part for part in (of_text, of_seeds) if part[0])

    @property
    def in_percent(self) -> "Estimate":
        """A share as a number of percent."""
        error, spread = (None if x is None else 100 * x for x in (self.error, self.spread))
        return Estimate(100 * self.value, error, spread, self.seeds, self.windows)


def over_seeds(values: Sequence[float], errors: Sequence[float | None] = ()) -> Estimate:
    """From one value a seed and its error; the text is the same, so its error is their mean."""
    known = [error for error in errors if error is not None]
    error = fmean(known) if known and len(known) == len(errors) else None
    spread = stdev(values) if len(values) > 1 else None
    return Estimate(fmean(values), error, spread, len(values))


def over_windows(windows: Windows) -> Estimate:
    """From one value a window and seed.

    Raises:
        ValueError: the seeds have different numbers of windows.
    """
    each = over_seeds([fmean(values) for values in windows.values()])
    by_window = [fmean(values) for values in zip(*windows.values(), strict=True)]
    count = len(by_window)
    if count < 2:
        return each
    error = stdev(by_window) / math.sqrt(count)
    return Estimate(each.value, error, each.spread, each.seeds, count)


def difference(ours: Windows, theirs: Windows) -> Estimate | None:
    """Ours less theirs, over the seeds that both have; None where they share none.

    Raises:
        ValueError: the windows of a seed are not as many.
    """
    common = [seed for seed in ours if seed in theirs]
    if not common:
        return None
    return over_windows(
        {seed: [a - b for a, b in zip(ours[seed], theirs[seed], strict=True)] for seed in common}
    )


def unpaired(ours: Estimate, theirs: Estimate) -> Estimate:
    """Ours less theirs from the means alone. The error is too large rather than too small: what
    makes a text hard for both does not cancel."""

    def both(one: float | None, other: float | None) -> float | None:
        return None if one is None or other is None else math.hypot(one, other)

    return Estimate(
        ours.value - theirs.value,
        both(ours.error, theirs.error),
        both(ours.spread, theirs.spread),
        min(ours.seeds, theirs.seeds),
    )
