"""What torchrun starts: `rank_worker.py cases PLACE`, or `rank_worker.py kill PLACE`."""

import json
import os
import signal
import sys
import time
from pathlib import Path

if sys.argv[1] == "cases":  # the killed run is as fast as a user's
    from jaxtyping import install_import_hook

    install_import_hook("q2n", "shapes.checked")

from distributed.rank_cases import CASES, run_case  # noqa: E402

from q2n.api import quantize_among_ranks  # noqa: E402
from q2n.cli.main import main  # noqa: E402
from q2n.distributed.launch import launched  # noqa: E402
from q2n.errors import InputError  # noqa: E402
from q2n.pipeline.among_ranks import MeasureAmongRanks  # noqa: E402


def all_cases(place: Path) -> None:
    with launched() as ranks:
        for name in CASES:
            run_case(place, name, place / "together" / name, ranks)
        refused = {}
        for name, settings in {
            "ranks": {"windows": 1},
            "refit": {"refit": "block"},
            "settings": {"damping": 0.01 + ranks.rank},
        }.items():
            try:
                quantize_among_ranks(
                    ranks,
                    place / "llama",
                    place / "refused",
                    **{**common(place), **settings},
                )
            except InputError as error:
                refused[name] = str(error)
        (place / f"refused-{ranks.rank}.json").write_text(json.dumps(refused))


def common(place: Path) -> dict:
    text = str(place / "text.txt")
    return {"corpus": text, "windows": 6, "length": 48, "batch_size": 2, "group_size": 32}


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
    flags = [f"--{key.replace('_', '-')}={value}" for key, value in common(place).items()]
    return main(["quantize", str(place / "llama"), "--output", str(place / "killed-out"), *flags])


if __name__ == "__main__":
    task, folder = sys.argv[1], Path(sys.argv[2])
    sys.exit(kill(folder) if task == "kill" else all_cases(folder))
