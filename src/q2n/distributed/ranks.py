"""One of the processes that work on a run together, and what they say to each other.

Every rank calls the same collectives in the same order. Nothing is ever pickled: tensors travel as
tensors, everything else as bytes that the sender wrote (JSON, safetensors).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from jaxtyping import Shaped
from torch import Tensor


class Ranks(ABC):
    """This process among those of the run."""

    rank: int
    size: int

    @property
    def is_first(self) -> bool:
        """Whether it writes, prints and owns the output."""
        return self.rank == 0

    @property
    def are_several(self) -> bool:
        """Whether there is anybody to talk to."""
        return self.size > 1

    @abstractmethod
    def at(self, place: str) -> None:
        """Say what is being done now, so that it can be named should this rank end."""

    @abstractmethod
    def add_everywhere(self, tensor: Shaped[Tensor, "..."]) -> None:
        """In place: the sum over all ranks, the same bits on each."""

    @abstractmethod
    def add_at(self, tensor: Shaped[Tensor, "..."], owner: int) -> None:
        """In place: the sum over all ranks, on the owner alone; the others' values are lost."""

    @abstractmethod
    def gather(self, data: bytes) -> list[bytes]:
        """What each rank gives, by rank, on all of them."""

    @abstractmethod
    def device(self, asked: str) -> str:
        """The device of this rank where the settings ask for one.

        Raises:
            InputError: two ranks have the same GPU, some have none, or one was asked for by number.
        """


@dataclass(frozen=True)
class Alone(Ranks):
    """The only process of its run."""

    rank: int = 0
    size: int = 1

    def at(self, place: str) -> None:
        pass

    def add_everywhere(self, tensor: Shaped[Tensor, "..."]) -> None:
        pass

    def add_at(self, tensor: Shaped[Tensor, "..."], owner: int) -> None:
        pass

    def gather(self, data: bytes) -> list[bytes]:
        return [data]

    def device(self, asked: str) -> str:
        return asked


ALONE = Alone()
