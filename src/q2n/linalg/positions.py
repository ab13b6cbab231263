"""The mean activation at each position; Q2N's released code takes the Gram matrix of these."""

from typing import Self

from jaxtyping import Float
from torch import Tensor

from q2n.errors import InputError
from q2n.linalg.moments import Moment
from q2n.linalg.required_statistics import SUM


class PositionMoment(Moment):
    """The sum over sequences at each position, [length, m]."""

    @classmethod
    def of(cls, x: Float[Tensor, "*batch in"]) -> Self:
        """Of the sequences x.

        Raises:
            InputError: x has no sequences.
        """
        if x.ndim != 3:
            raise InputError(
                "the mean activation at each position needs inputs [sequences, length, width], "
                f"got {tuple(x.shape)}; use --gram second_moment"
            )
        return cls(x.sum(0, dtype=SUM), x.shape[-1])

    def __add__(self, other: Self) -> Self:
        if len(self.total) != len(other.total):
            raise InputError(
                "the mean activation at each position needs sequences of one length, got "
                f"{len(other.total)} after {len(self.total)}; use --gram second_moment"
            )
        return super().__add__(other)
