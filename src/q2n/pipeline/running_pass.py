"""A forward pass that can be left in the middle: a greenlet that knows where it paused."""

from collections.abc import Callable, Sequence
from typing import Any

from greenlet import greenlet
from jaxtyping import Int
from torch import Tensor


class RunningPass(greenlet):
    """One batch on its way through one block."""

    def __init__(self, run: Callable[[], Any]):
        super().__init__(run)
        self.position = -1
        """Of the last site at which it paused."""
        self.reached = 0
        """Tokens of the batch that reach that site by themselves."""
        self.routed: dict[str, Sequence[Int[Tensor, " _"]]] = {}
        """By name of a mixture's experts: the tokens of each."""
        self.streams: dict[str, Tensor] = {}
        """The residual stream at the places of it that sites name."""
        self.leader: RunningPass | None = None
        """The pass that says which tokens reach an expert, if this one does not."""

    def pause(self, position: int, inputs: Tensor, reached: int) -> None:
        """Hand out the input of a site, and wait."""
        self.position, self.reached = position, reached
        self.parent.switch(inputs)
