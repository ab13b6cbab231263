"""Where the ranks find each other, before anything is done together.

Each writes down that it has come and waits for the others. A rank that was refused on its own
machine never comes, and torchrun on other machines does not hear of that: those who wait say at
last who is missing. They wait in Python, which a signal can end.
"""

from __future__ import annotations

import os
import time
from datetime import timedelta
from itertools import count
from typing import TYPE_CHECKING

import torch.distributed as dist

from q2n.errors import InputError, RankError, reason_of

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

PATIENCE = timedelta(minutes=10)
"""In which all must have come: torch and the rest are loaded by then, from a network too."""
_PAUSE = 0.05
"""Seconds between two looks."""
_NEEDED = ("RANK", "MASTER_ADDR", "MASTER_PORT")
_meetings = count()
"""Every process counts them alike. torchrun's store outlives a meeting, and what was written at an
earlier one, the addresses of ranks among it, must not be read at the next."""


def meet() -> tuple[Store, int, int]:
    """The store that all ranks have come to, this one's number, and how many there are.

    Raises:
        InputError: the environment names other ranks, but not how to find them.
        RankError: not all have come in time.
    """
    if missing := [name for name in _NEEDED if not os.environ.get(name)]:
        raise InputError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']} in the environment, as if torchrun had "
            f"started ranks, but {', '.join(missing)} not set: start q2n by torchrun, or alone "
            "without WORLD_SIZE"
        )
    try:
        # torch's types do not list these two
        found = dist.rendezvous("env://", timeout=PATIENCE)  # type: ignore[attr-defined]
        store, rank, size = next(found)
    except RuntimeError as cause:
        place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise RankError(
            f"rank {os.environ['RANK']} has not found the others at {place} "
            f"({reason_of(cause)}); see what they print, and whether that can be reached from here"
        ) from cause
    store = dist.PrefixStore(f"q2n-{next(_meetings)}", store)  # type: ignore[attr-defined]
    wait_for_all(store, rank, size, PATIENCE)
    return store, rank, size


def wait_for_all(store: Store, rank: int, size: int, patience: timedelta) -> None:
    """Come, and wait until all have.

    Raises:
        RankError: naming those that have not in time.
    """
    store.set(str(rank), "here")
    deadline = time.monotonic() + patience.total_seconds()
    while not store.check([str(other) for other in range(size)]):
        if time.monotonic() > deadline:
            absent = [str(other) for other in range(size) if not store.check([str(other)])]
            raise RankError(
                f"of {size} ranks {', '.join(absent)} did not start within "
                f"{patience.total_seconds() / 60:.0f} minutes; see what they print on their machine"
            )
        time.sleep(_PAUSE)
