"""The tensors of the block that comes next, read while the device works on this one.

A thread reads them, for CUDA into pinned memory, from which a GPU takes them at the full rate of
its bus. One block is read ahead, and it lies in main memory: the device holds no more than without.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait

from torch import Tensor

Read = Callable[[int], Mapping[str, Tensor]]
"""Reads the tensors of a block, by its number."""


class ReadAhead:
    """One block at a time; `read` is called by one thread at a time."""

    def __init__(self, read: Read, *, pinned: bool):
        self._read, self._is_pinned = read, pinned
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="read-ahead")
        self._begun: tuple[int, Future[Mapping[str, Tensor]]] | None = None

    def begin(self, index: int) -> None:
        """Read a block in the background, instead of one that nobody has taken."""
        self._settle()
        self._begun = index, self._thread.submit(self._ready, index)

    def take(self, index: int) -> Mapping[str, Tensor]:
        """The tensors of a block: those read ahead, if it is this one. Raises as `read`."""
        self._settle()
        if self._begun is None or self._begun[0] != index:
            return self._read(index)
        (_, found), self._begun = self._begun, None
        return found.result()

    def _settle(self) -> None:
        if self._begun is not None:
            wait([self._begun[1]])

    def _ready(self, index: int) -> Mapping[str, Tensor]:
        tensors = self._read(index)
        return {k: x.pin_memory() for k, x in tensors.items()} if self._is_pinned else tensors
