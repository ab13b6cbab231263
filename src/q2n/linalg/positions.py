"""The mean activation at each position; Q2N's released code takes the Gram matrix of these."""

from jaxtyping import Float
from torch import Tensor

from q2n.errors import InputError
from q2n.linalg.required_statistics import SUM


def add_positions(
    total: Float[Tensor, "length in"] | None, x: Float[Tensor, "*batch in"]
) -> Float[Tensor, "length in"]:
    """The sum over sequences with those of `x` added; None: x has the first ones.

    Raises:
        InputError: x has no sequences, or such of another length.
    """
    if x.ndim != 3:
        raise InputError(
            "the mean activation at each position needs inputs [sequences, length, width], "
            f"got {tuple(x.shape)}; use --gram second_moment"
        )
    added = x.sum(0, dtype=SUM)
    if total is None:
        return added
    if total.shape != added.shape:
        raise InputError(
            "the mean activation at each position needs sequences of one length, got "
            f"{added.shape[0]} after {total.shape[0]}; use --gram second_moment"
        )
    return total + added
