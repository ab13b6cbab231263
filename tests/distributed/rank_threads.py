"""Ranks that are threads of one process: the same collectives, without a network."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from threading import Barrier, BrokenBarrierError
from typing import Any
from unittest.mock import patch

import torch

from q2n.distributed.ranks import Ranks
from q2n.linalg.products import Probe


class ThreadRanks(Ranks):
    def __init__(self, rank: int, board: list, barrier: Barrier):
        self.rank, self.size, self.board, self.barrier = rank, len(board), board, barrier
        self.places: list[str] = []

    def at(self, place):
        self.places.append(place)

    def add_everywhere(self, tensor):
        tensor.copy_(sum(self._all(tensor.clone())))

    def add_at(self, tensor, owner):
        total = sum(self._all(tensor.clone()))
        tensor.copy_(total if self.rank == owner else torch.full_like(tensor, torch.nan))

    def gather(self, data):
        return self._all(data)

    def device(self, asked):
        return asked

    def _all(self, value: Any) -> list:
        self.board[self.rank] = value
        self.barrier.wait(120)
        values = list(self.board)
        self.barrier.wait(120)
        return values


def on_threads(size: int, work: Callable[[Ranks], Any]) -> list:
    """What `work` returns on each of so many ranks."""
    board, barrier = [None] * size, Barrier(size)

    def one(rank: int) -> Any:
        try:
            return work(ThreadRanks(rank, board, barrier))
        except BaseException:
            barrier.abort()
            raise

    # Two things are the process's, and two threads that undo them in turn leave them changed: how
    # accelerate has modules register parameters (q2n's own mode beside it belongs to one thread),
    # and which float32 products are taken.
    alone = patch("q2n.models.skeleton.init_empty_weights", lambda **_: nullcontext())
    products = patch("q2n.linalg.products.probe", lambda: Probe(gain=1.0, error=0.0))
    with alone, products, ThreadPoolExecutor(size) as pool:
        futures = [pool.submit(one, rank) for rank in range(size)]
    failures = [failure for future in futures if (failure := future.exception()) is not None]
    for failure in sorted(failures, key=lambda x: isinstance(x, BrokenBarrierError)):
        raise failure  # the others only waited
    return [future.result() for future in futures]
