"""Damaged input of five kinds: a right result, or one line that says what is wrong.

python -m fuzz [KIND..] [--cases FIRST:LAST]     from the folder tests/

Every case is seeded by its number, all run in this one process. What is no fault is said of
nothing; the exit code is the number of faults (at most 100).
"""

import argparse
import contextlib
import faulthandler
import io
import logging
import os
import resource
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from random import Random

os.environ["HF_HUB_OFFLINE"] = "1"

import torch

from fuzz.kinds import KINDS, Kind, contents, lay_out, prepare, quantize
from fuzz.mutations import mutate

SECONDS = 10
"""Of one case. None takes one; what hangs is a fault."""
BYTES = 4 * 2**30
"""Of address space above what the process has."""


class Hung(BaseException):
    """A case took too long."""


def run() -> int:
    """All cases of the kinds asked for; returns the number of faults."""
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("kinds", nargs="*", default=[])
    parser.add_argument("--cases", default="0:200")
    chosen = parser.parse_args()
    first, last = map(int, chosen.cases.split(":"))
    torch.set_num_threads(1)
    _silence()
    faults = 0
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        base = Path(folder) / "base"
        prepare(base)
        _limit_memory()
        for name in chosen.kinds or KINDS:
            for number in range(first, last):
                faults += _case(name, number, base, Path(folder) / "case")
    return faults


def _case(name: str, number: int, base: Path, place: Path) -> bool:
    kind = KINDS[name]
    lay_out(name, base, place)
    rng = Random(f"{name} {number}")
    change = mutate(rng.choice(sorted(place.glob(kind.files))), rng)
    fault = fault_of(place, kind)
    shutil.rmtree(place)
    if fault:
        print(
            f"{name} {number}: {ascii(change)}\n    {ascii(fault)}".replace("\\n", "\n"), flush=True
        )
    return fault is not None


def fault_of(place: Path, kind: Kind) -> str | None:
    """What is wrong with how q2n takes the input."""
    before, said = contents(place / "model"), io.StringIO()
    try:
        with _alarm(), contextlib.redirect_stderr(said):
            code = quantize(place, *kind.flags)
        if code == 0:
            return kind.wrong(place)
    except Hung:
        return f"still running after {SECONDS} s"
    except BaseException:  # also what is no Exception: nothing may come out of `main`
        return "".join(traceback.format_exc(limit=-4)).strip().replace("\n", "\n    ")
    errors = said.getvalue().splitlines()
    if code != 2 or len(errors) != 1 or not errors[0].startswith("error: "):
        return f"exit code {code}, said {errors}"
    if (place / "out").exists() or contents(place / "model") != before:
        return "refused, and yet files were changed"
    return None


@contextlib.contextmanager
def _alarm() -> Iterator[None]:
    def hung(number, frame):
        raise Hung

    signal.signal(signal.SIGALRM, hung)
    signal.alarm(SECONDS)
    # What hangs outside of Python does not notice: that ends the process.
    faulthandler.dump_traceback_later(2 * SECONDS, exit=True, file=sys.__stderr__)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.alarm(0)


def _limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))


def _silence() -> None:
    """What transformers says of damaged input is no matter here."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")


if __name__ == "__main__":
    sys.exit(min(run(), 100))
