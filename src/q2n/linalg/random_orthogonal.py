r"""Random orthogonal matrices that are cheap to apply, and the one sampler behind all of them.

A dense random rotation of width n costs n^2 numbers and n^2 operations per vector. With n = p q
a vector is a p x q matrix, and a small rotation on each axis mixes all of it (QuIP, Chee et al.
2023, section 4.1):

    M = P_out (B1 (x) B2) P_in,      P_in, P_out random permutations,

B1 on the p axis, B2 on the q axis: n (p + q) operations per vector, about 2 n sqrt(n) if p and q
are near sqrt(n) (kronecker.py applies it). Modes:

- kronecker: one B1 of SO(p) and one B2 of SO(q), shared by all q columns and all p rows;
- blocks: q independent B1, then p independent B2;
- blocks_unpermuted: as blocks, without the permutations.

p and q: the prime factors of n in ascending order, the first, third, .. into p, the others into q
(576 = 24 x 24, 1536 = 32 x 48, 11008 = 688 x 16). A prime n is n x 1: a dense rotation.

QuaRot (Ashkboos et al. 2024) mixes with Hadamard matrices and random signs instead. Where no
Hadamard matrix of a known order divides n, its odd part takes a random rotation.

Each block is uniform (Haar) over the rotations: Q of the QR decomposition of a Gaussian matrix,
column i times the sign of R_ii, which makes Q uniform over the orthogonal matrices (Mezzadri 2007),
then the first column times the determinant. For size 2 that is a uniform angle, for size 1 it is 1.

A rotation is stored as its seed. What comes from a seed must be the same everywhere: the numbers
are numpy's `RandomState`, whose streams are frozen, and the QR is in float64, whose rounding
differs between machines far below float32.
"""

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from q2n.linalg.hadamard import hadamard_orders
from q2n.linalg.kronecker import Factor, KroneckerMatrix

Mode = Literal["kronecker", "blocks", "blocks_unpermuted"]


def random_rotation(width: int, mode: Mode, seed: int, stream: int = 0) -> KroneckerMatrix:
    """QuIP's rotation of a seed; different streams of one seed are independent."""
    random = _random(seed, stream)
    p, q = factors(width)
    shared = mode == "kronecker"
    into = torch.from_numpy(random.permutation(width))
    first, second = _haar(random, 1 if shared else q, p), _haar(random, 1 if shared else p, q)
    out = torch.from_numpy(random.permutation(width))
    blocks = (Factor.dense(first), Factor.dense(second))
    if mode == "blocks_unpermuted":
        return KroneckerMatrix(blocks)
    return KroneckerMatrix(blocks, into=into, out=out)


def haar_factor(size: int, seed: int, stream: int = 0) -> Factor:
    """One dense rotation, uniform over SO(size)."""
    return Factor.dense(_haar(_random(seed, stream), 1, size))


def mixing_factors(width: int, seed: int, stream: int = 0) -> tuple[Factor, ...]:
    """QuaRot's factors, which mix all of an axis: Hadamard matrices if their orders make up the
    width, else a random rotation of its odd part and Hadamard matrices of the power of two."""
    orders = hadamard_orders(width)
    if orders is not None:
        return tuple(Factor.hadamard(order) for order in orders)
    power = width & -width
    others = hadamard_orders(power) or ()
    odd = haar_factor(width // power, seed, stream)
    return (odd, *(Factor.hadamard(order) for order in others))


def random_signs(width: int, seed: int, stream: int = 0) -> Float[Tensor, " n"]:
    """+1 and -1, each with probability 1/2."""
    return torch.from_numpy(_random(seed, stream).randint(2, size=width) * 2 - 1).float()


def factors(width: int) -> tuple[int, int]:
    """p and q with p q = `width`."""
    p = q = 1
    left, divisor, place = width, 2, 0
    while left > 1:
        if divisor * divisor > left:
            divisor = left  # what is left is prime
        if left % divisor:
            divisor += 1
            continue
        p, q = (p * divisor, q) if place % 2 == 0 else (p, q * divisor)
        left, place = left // divisor, place + 1
    return p, q


def _random(seed: int, stream: int) -> np.random.RandomState:
    return np.random.RandomState([seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF, stream])


def _haar(random: np.random.RandomState, count: int, size: int) -> Float[Tensor, "count size size"]:
    """`count` independent uniform rotations, float64."""
    orthogonal, triangle = np.linalg.qr(random.standard_normal((count, size, size)))
    orthogonal *= np.sign(np.diagonal(triangle, axis1=1, axis2=2))[:, None, :]
    orthogonal[:, :, 0] *= np.sign(np.linalg.det(orthogonal))[:, None]
    return torch.from_numpy(orthogonal)
