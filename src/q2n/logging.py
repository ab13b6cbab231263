"""Progress for people, events for programs.

One `Reporter` goes through a run. In `bars` mode it draws rich progress bars on standard
error, and says in a line now and then how far it is where that is no terminal; in `json` mode it
prints one JSON object per line on standard output; in `quiet` mode it prints nothing.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

Mode = Literal["bars", "quiet", "json"]
LINE_EVERY = 30.0
"""Seconds between two lines on what is done, where there is no terminal to draw a bar on."""


class Screen(Console):
    """A console that says when nobody reads it any more, rather than end the program."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


class Bar:
    """A progress bar in use."""

    def __init__(self, progress: Progress, task: TaskID):
        self._progress, self._task = progress, task
        self._last = time.monotonic()

    def advance(self, steps: int = 1) -> None:
        """So many steps are done."""
        self._progress.advance(self._task, steps)
        console, task = self._progress.console, self._progress.tasks[self._task]
        if not console.is_terminal and time.monotonic() - self._last >= LINE_EVERY:
            self._last = time.monotonic()
            left = "" if task.time_remaining is None else f", {task.time_remaining:.0f} s left"
            console.print(
                f"{task.description}: {task.completed:.0f} of {task.total:.0f}, "
                f"{task.elapsed:.0f} s{left}",
                soft_wrap=True,
                markup=False,
            )

    def detail(self, text: str) -> None:
        """What is being done now."""
        self._progress.update(self._task, detail=text)


class Reporter:
    """Says what a run is doing, in one of three modes."""

    def __init__(self, mode: Mode = "quiet"):
        self.mode = mode
        self.console = Screen(stderr=True, quiet=mode != "bars", highlight=False)

    def event(self, kind: str, **fields: Any) -> None:
        """One fact for a program."""
        if self.mode == "json":
            print(json.dumps({"event": kind, "time": round(time.time(), 3), **fields}), flush=True)

    def note(self, text: str) -> None:
        """Something about the result that the user must know; it is in the record too."""
        self.event("note", text=text)
        self.console.print(f"note: {text}", soft_wrap=True, markup=False)

    @contextmanager
    def bar(self, title: str, total: int, done: int = 0) -> Iterator[Bar]:
        """A bar of `total` steps with time used and estimated time left."""
        columns = (
            TextColumn("{task.description}", style="bold", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[detail]}", style="dim", markup=False),
        )
        with Progress(*columns, console=self.console, transient=False) as progress:
            task = progress.add_task(title, total=total, completed=done, detail="")
            yield Bar(progress, task)
