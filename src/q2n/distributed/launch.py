"""The ranks that torchrun has started, for as long as a run lasts.

    torchrun --nproc-per-node 4 -m q2n quantize MODEL --output DIR

torchrun tells each process by its environment (RANK, WORLD_SIZE, MASTER_ADDR, ..). A process
without these is alone.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from q2n.distributed.group import Group, gather
from q2n.distributed.meeting import meet
from q2n.distributed.ranks import ALONE, Ranks
from q2n.distributed.watch import Watch, watch
from q2n.errors import RankError, reason_of

LONGEST = timedelta(hours=6)
"""That ranks wait for each other in a collective: for the solution of a large layer. A rank that
has ended is noticed by other means (watch.py)."""
STOPPED = 3.0
"""Seconds in which a stopped process may learn that another one's end is the reason: torchrun stops
all processes when one has ended."""


@contextmanager
def launched() -> Iterator[Ranks]:
    """This process among those that torchrun has started, or alone.

    Raises:
        InputError: the environment is not one that torchrun makes.
        RankError: another rank has ended, or did not start; it says which one, and where.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1:
        yield ALONE
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    store, rank, size = meet()
    store.set_timeout(LONGEST)  # NCCL connects in the first collective, by way of the store
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=LONGEST)
    ranks = Group(watch(rank, size, _address(), _tell))
    try:
        yield ranks
        ranks.watch.done()
    except BaseException as failure:
        _leave(ranks.watch, failure)
        raise
    finally:
        dist.destroy_process_group()  # whoever waits for this rank in a collective learns of it
        ranks.watch.leave()


def _leave(watching: Watch, failure: BaseException) -> None:
    """Tell the others why this rank ends, unless another one's end is the reason.

    Raises:
        RankError: it is.
    """
    if isinstance(failure, RankError):
        return
    stopped = isinstance(failure, KeyboardInterrupt)
    ended = watching.ended(STOPPED if stopped else 0.0)
    if ended is not None and stopped and ended.reason != reason_of(failure):
        raise RankError(str(ended)) from failure
    watching.failed(reason_of(failure))


def _address() -> str:
    """Of the machine of the first rank."""
    return os.environ["MASTER_ADDR"]


def _tell(values: list[Any] | None) -> list[Any]:
    return json.loads(gather(b"" if values is None else json.dumps(values).encode())[0])
