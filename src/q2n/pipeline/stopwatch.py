"""Wall time of what comes one after the other: the blocks of a run, and the stages before them."""

import time


class Stopwatch:
    """Splits the run's wall time among its blocks, or what else comes one after the other."""

    def __init__(self) -> None:
        self._last = time.perf_counter()

    def lap(self) -> float:
        """Seconds since the last lap, or since the start."""
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        return seconds
