"""What torchrun starts: `rank_worker.py TASK PLACE`, TASK one of those below."""

import os
import signal
import sys
import time
from pathlib import Path

from distributed.rank_cases import CASES, run_case

from q2n.cli.main import main
from q2n.distributed.launch import launched
from q2n.pipeline.among_ranks import MeasureAmongRanks


def all_cases(place: Path) -> None:
    with launched() as ranks:
        for name in CASES:
            run_case(place, name, place / "together" / name, ranks)


def meet_again(place: Path) -> None:
    """Ranks for one run after another in the same program."""
    for number in range(6):
        with launched() as ranks:
            heard = ranks.gather(f"{ranks.rank} at {number}".encode())
            if ranks.is_first:
                (place / f"heard-{number}").write_bytes(b", ".join(heard))


def kill(place: Path) -> int:
    """Rank 1 is killed in its second block."""
    measure = MeasureAmongRanks.__call__

    def killed(self, state):
        measured = measure(self, state)
        if state.index == 1 and self.ranks.rank == 1:
            (place / "killed").write_text(str(time.time()))
            os.kill(os.getpid(), signal.SIGKILL)
        return measured

    MeasureAmongRanks.__call__ = killed
    flags = ["--windows=6", "--length=48", "--batch-size=2", "--group-size=32"]
    flags += [f"--corpus={place / 'text.txt'}", f"--output={place / 'out'}"]
    return main(["quantize", str(place / "llama"), *flags])


if __name__ == "__main__":
    task, folder = sys.argv[1], Path(sys.argv[2])
    sys.exit({"cases": all_cases, "again": meet_again, "kill": kill}[task](folder))
