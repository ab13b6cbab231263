"""Files written by a thread, while the device works on what comes next.

One thing is written at a time, in order, and at most one waits. What went wrong with one is raised
where the next is handed over, or at the end.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import Self

When = Callable[[Callable[[], None]], None]
"""Calls what writes, now or later."""


def now(write: Callable[[], None]) -> None:
    """Write before anything else is done."""
    write()


class WriteBehind:
    """Calls what it is given in a thread. As a context, it ends when all is written."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="write-behind")
        self._begun: Future[None] | None = None

    def __call__(self, write: Callable[[], None]) -> None:
        """Begin to write, once what was begun before is written. Raises as that."""
        self.finish()
        self._begun = self._thread.submit(write)

    def finish(self) -> None:
        """Wait for what was begun. Raises as that."""
        begun, self._begun = self._begun, None
        if begun is not None:
            begun.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        if kind is None:
            self.finish()
        elif self._begun is not None:  # what ends the work is raised, not what follows from it
            wait([self._begun])
