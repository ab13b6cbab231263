"""The Hadamard matrix of order 128 on each 128 neighbouring channels, orthonormal: its own inverse.

exllamav3 multiplies with it on both sides of a weight (modules/quant/exl3_lib/quantize.py,
`preapply_had_l`, `preapply_had_r`): weights become nearly Gaussian, and outliers are spread."""

from functools import cache

from jaxtyping import Float
from torch import Tensor

from q2n.linalg.kronecker import Factor, KroneckerMatrix

BLOCK = 128


@cache
def block_hadamard(size: int) -> KroneckerMatrix:
    """H for `size` channels, a multiple of 128."""
    return KroneckerMatrix((Factor.identity(size // BLOCK), Factor.hadamard(BLOCK)))


def both_sided(matrix: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
    """H M H: its own inverse too."""
    rows, columns = matrix.shape
    return block_hadamard(columns).apply(block_hadamard(rows).apply_to_outputs(matrix))


def padded(size: int) -> int:
    """The channels that `size` channels are filled up to."""
    return -(-size // BLOCK) * BLOCK
