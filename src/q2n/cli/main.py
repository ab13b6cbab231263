"""The `q2n` command.

Exit codes: 0 done; 1 a failure of the program; 2 input that cannot be used, said in one
line; 130 interrupted and 143 terminated (a quantization goes on with --resume); 141 nobody
reads the output any more.

What only prints (help, the version, `methods`, usage errors) imports neither torch nor
transformers: a command imports what it works with when it works. Here nothing is imported
before `main` listens to Ctrl-C.
"""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from q2n.errors import Q2NError

GOES_ON = "an unfinished quantization goes on with --resume"


class Terminated(KeyboardInterrupt):
    """The signal that asks a process to end: treated as Ctrl-C is."""


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    try:
        with _terminable():
            return _run(arguments)
    except Q2NError as failure:
        return _fail(str(failure), failure.exit_code)
    except Terminated:
        return _fail(f"terminated; {GOES_ON}", 143)
    except KeyboardInterrupt:
        return _fail(f"interrupted; {GOES_ON}", 130)
    except BrokenPipeError:
        return _unheard()


def _run(arguments: list[str] | None) -> int:
    from q2n.cli.commands import build_parser

    try:
        parsed = build_parser().parse_args(arguments)
        parsed.run(parsed)
        return 0
    finally:
        _flush()


def _flush() -> None:
    """Write what is printed now, not when Python ends and can only complain."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as cause:
        _silence()
        raise Q2NError(f"the output cannot be written ({cause.strerror})") from cause


def _unheard() -> int:
    """As a program ends that writes into a closed pipe, but not killed in the middle of a file."""
    _silence()
    return 128 + signal.SIGPIPE


def _silence() -> None:
    """Throw away what is left in the buffer of the output."""
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


@contextmanager
def _terminable() -> Iterator[None]:
    """While it lasts, SIGTERM raises as SIGINT does."""

    def stop(signal_number: int, frame: FrameType | None) -> None:
        raise Terminated

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not in the main thread, where signals do not arrive
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _fail(message: str, code: int) -> int:
    from q2n.logging import Screen

    screen = Screen(stderr=True, highlight=False)
    screen.print("[bold red]error:[/]", end=" ")
    screen.print(" ".join(message.split()), soft_wrap=True, markup=False)
    return code


if __name__ == "__main__":
    sys.exit(main())
