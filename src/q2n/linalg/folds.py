"""Two halves of the calibration windows, for what is chosen held out.

A setting is fitted on one fold and judged on the other (held_out.py). The sums of both folds add up
to those of all windows, so they are gathered instead of them: the memory of a second set of sums
and no more work.

Windows go to the folds in turn. Loose tokens (those that reach one expert) are no windows and are
cut in halves. Of an odd number the fold with fewer tokens gets the larger part.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, Self, TypeVar, runtime_checkable

from jaxtyping import Float
from torch import Tensor


@runtime_checkable
class Sums(Protocol):
    """What a fold holds: running sums over its tokens."""

    tokens: int

    def update(
        self,
        x: Float[Tensor, "*batch in"],
        x_full: Float[Tensor, "*batch in"] | None = None,
        s: Float[Tensor, "*batch out"] | None = None,
        s_full: Float[Tensor, "*batch out"] | None = None,
    ) -> None:
        """Add tokens."""

    def __add__(self, other: Self) -> Self:
        """The sums over both sets of tokens."""


S = TypeVar("S", bound=Sums)


@dataclass(frozen=True)
class Folds(Generic[S]):
    """The sums of either half."""

    first: S
    second: S
    from_second: bool = False
    """Whether the first window goes to the second fold: an odd one of the text, counted from 0."""

    @property
    def both(self) -> list[S]:
        return [self.first, self.second]

    @property
    def usable(self) -> list[S]:
        """Both; none if one has seen no token (a single window, an expert that is hardly used)."""
        return self.both if self.first.tokens and self.second.tokens else []

    def update(
        self, x: Float[Tensor, "*batch in"], *others: Float[Tensor, "*batch _"] | None
    ) -> None:
        """Deal out the tokens of `x`, of shape [windows, length, in] or [tokens, in], and of what
        else there is of them."""
        in_turn = self.both[::-1] if self.from_second else self.both
        fewer, more = sorted(in_turn, key=lambda fold: fold.tokens)
        for fold, part in zip((fewer, more), _parts(x), strict=True):
            if len(x[part]):
                fold.update(x[part], *(None if other is None else other[part] for other in others))

    def map(self, change: Callable[[S], S]) -> "Folds[S]":
        """The folds, each of them changed."""
        return Folds(change(self.first), change(self.second))

    def __add__(self, other: "Folds[S]") -> "Folds[S]":
        """Fold by fold."""
        return Folds(self.first + other.first, self.second + other.second)


def _parts(x: Float[Tensor, "*batch in"]) -> tuple[slice, slice]:
    """The larger part first."""
    if x.ndim > 2:
        return slice(0, None, 2), slice(1, None, 2)
    half = -(-len(x) // 2)
    return slice(None, half), slice(half, None)
