"""Ranks that torch.distributed connects: gloo between CPUs, NCCL between GPUs."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor

from q2n.distributed.ranks import Ranks
from q2n.distributed.watch import Watch
from q2n.errors import InputError, RankError, reason_of

NOTICE = 10.0
"""Seconds in which it becomes known who has ended, after a collective has failed."""


class Group(Ranks):
    """One of several processes."""

    def __init__(self, watch: Watch):
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.watch = watch

    def at(self, place: str) -> None:
        self.watch.at(place)

    def add_everywhere(self, tensor: Shaped[Tensor, "..."]) -> None:
        with self._together():
            dist.all_reduce(tensor)

    def add_at(self, tensor: Shaped[Tensor, "..."], owner: int) -> None:
        with self._together():
            dist.reduce(tensor, owner)

    def gather(self, data: bytes) -> list[bytes]:
        with self._together():
            return gather(data)

    def device(self, asked: str) -> str:
        if asked not in ("auto", "cuda"):
            if asked.startswith("cuda"):
                raise InputError(
                    f"--device {asked} is one GPU, and there are {self.size} ranks: with --device "
                    "cuda each takes the one of its number on its machine"
                )
            return asked
        count = torch.cuda.device_count()
        # Of those that this process sees: a launcher may show each process one alone.
        own = int(os.environ.get("LOCAL_RANK", "0")) % max(1, count)
        name = str(torch.cuda.get_device_properties(own).uuid) if count else ""
        _require_a_gpu_each([each.decode() for each in self.gather(name.encode())])
        if not count:
            return asked  # refused by name where it was asked for
        torch.cuda.set_device(own)
        return f"cuda:{own}"

    @contextmanager
    def _together(self) -> Iterator[None]:
        """A collective.

        Raises:
            RankError: it failed, naming the rank that has ended.
        """
        try:
            yield
        except RuntimeError as cause:
            ended = self.watch.ended(NOTICE)
            if ended is None:
                raise RankError(f"the ranks have lost each other: {reason_of(cause)}") from cause
            raise RankError(str(ended)) from cause


def _require_a_gpu_each(names: list[str]) -> None:
    """Refuse ranks that would share a GPU, or have none beside others that do.

    Args:
        names: what tells a rank's GPU from all others, by rank; empty where it has none.

    Raises:
        InputError: naming the first of them.
    """
    if not any(names):
        return
    for rank, name in enumerate(names):
        first = names.index(name)
        if not name:
            fault = f"rank {rank} sees no GPU, and others do"
        elif first < rank:
            fault = f"ranks {first} and {rank} have the same GPU"
        else:
            continue
        raise InputError(f"{fault}; start one rank a GPU (--nproc-per-node), or give --device cpu")


def gather(data: bytes) -> list[bytes]:
    """What each rank gives, by rank: all lengths first, then each rank's bytes to all."""
    size = dist.get_world_size()
    lengths = torch.zeros(size, dtype=torch.int64)
    lengths[dist.get_rank()] = len(data)
    dist.all_reduce(lengths)
    return [
        _from(rank, length, data) if length else b"" for rank, length in enumerate(lengths.tolist())
    ]


def _from(rank: int, length: int, data: bytes) -> bytes:
    mine = rank == dist.get_rank()
    buffer = torch.frombuffer(bytearray(data), dtype=torch.uint8) if mine else None
    sent = torch.empty(length, dtype=torch.uint8) if buffer is None else buffer
    dist.broadcast(sent, rank)
    return data if mine else sent.numpy().tobytes()
