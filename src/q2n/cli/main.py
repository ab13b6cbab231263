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
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from q2n.errors import Q2NError, RankError

_KEPT_PRODUCTS = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64"}
"""torch's library for products in bfloat16 on a CPU keeps a program and its memory for each number
of tokens that it meets, 1024 of them: of a mixture of 128 experts 0.3 GB (docs/LOG.md)."""


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    received: list[int] = []
    os.environ.update(_KEPT_PRODUCTS | os.environ)
    try:
        with _stoppable(received):
            return _run(arguments)
    except BrokenPipeError:  # as a program ends that writes into a closed pipe
        _silence()
        return 141
    except (KeyboardInterrupt, Exception) as failure:
        if isinstance(failure, RankError):  # the reason why torchrun has stopped this rank
            return _fail(str(failure), failure.exit_code)
        if received or isinstance(failure, KeyboardInterrupt):  # imports turn it into others
            return _stopped(received)
        if isinstance(failure, Q2NError):
            return _fail(str(failure), failure.exit_code)
        if isinstance(failure, OSError):  # of a disk or a network, where nothing said it better
            _silence()
            return _fail(str(failure), 1)
        raise


def _run(arguments: list[str] | None) -> int:
    from q2n.cli.commands import build_parser

    try:
        parsed = build_parser().parse_args(arguments)
        parsed.run(parsed)
        return 0
    finally:  # what is printed is written now, not when Python ends and can only complain
        if sys.stdout is not None:  # as it is in a process without one
            sys.stdout.flush()


def _silence() -> None:
    """Throw away what the output does not take: Python would try again when it ends."""
    try:
        sys.stdout.flush()
    except OSError:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())


@contextmanager
def _stoppable(received: list[int]) -> Iterator[None]:
    """While it lasts, SIGTERM raises as SIGINT does, and both are noted."""

    def stop(number: int, frame: FrameType | None) -> None:
        received.append(number)
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # signals do not arrive there
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number, handler in before.items():
        if handler != signal.SIG_IGN:  # as for a job in the background
            signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stopped(received: list[int]) -> int:
    number = received[0] if received else signal.SIGINT
    what = "terminated" if number == signal.SIGTERM else "interrupted"
    how = "an unfinished quantization goes on with --resume, a sweep with the same command"
    return _fail(f"{what}; {how}", 128 + number)


def _fail(message: str, code: int) -> int:
    from rich.text import Text

    from q2n.logging import Screen

    screen = Screen(stderr=True, highlight=False)
    line = Text.assemble(("error:", "bold red"), " ", " ".join(message.split()))
    screen.print(line, soft_wrap=True)  # at once: other ranks write to the same terminal
    return code


if __name__ == "__main__":
    sys.exit(main())
