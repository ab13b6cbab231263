r"""Random orthogonal matrices that are cheap to apply (QuIP, Chee et al. 2023, section 4.1).

A dense random rotation of width n costs n^2 numbers and n^2 operations a vector. With n = p q
a vector is a p x q matrix, and a small rotation on each axis mixes all of it:

    M = P_out (B1 (x) B2) P_in,      P_in, P_out random permutations,

B1 on the p axis, B2 on the q axis, 2 sqrt(n) n operations a vector if p and q are near sqrt(n).
Modes:

- kronecker: one B1 of SO(p) and one B2 of SO(q), shared by all q columns and all p rows;
- blocks: q independent B1, then p independent B2;
- blocks_unpermuted: as blocks, without the permutations.

The factors: prime factors of n in ascending order, those at even places into p, the others into
q (576 = 24 x 24, 1536 = 32 x 48, 11008 = 688 x 16). A prime n is n x 1: a dense rotation.

Each block is uniform (Haar): Q of the QR decomposition of a Gaussian matrix, signs by the diagonal
of R, then one column's sign by the determinant. For size 2 that is a uniform angle, for size 1 it
is 1.

A rotation is stored as its seed. What comes from a seed must be the same everywhere: the numbers
are numpy's `RandomState`, whose streams are frozen, and the QR is in float64, whose rounding
differs between machines far below float32.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

Mode = Literal["kronecker", "blocks", "blocks_unpermuted"]


@dataclass(frozen=True, eq=False)
class Rotation:
    """M, an orthogonal matrix of width n = p q, kept as its factors."""

    first: Float[Tensor, "_ p p"]
    """B1: one, or one for each index of the q axis."""
    second: Float[Tensor, "_ q q"]
    """B2: one, or one for each index of the p axis."""
    into: Int[Tensor, " n"]
    """P_in: entry k of what B1 and B2 see is entry into[k]."""
    out: Int[Tensor, " n"]
    """P_out, in the same way."""

    def apply(self, x: Float[Tensor, "tokens n"]) -> Float[Tensor, "tokens n"]:
        """`x M^T`: every row of x is turned by M."""
        to_q_major, to_p_major = self._axis_swaps()
        x = _turn(_columns(x, self.into[to_q_major]), self.first)
        x = _turn(_columns(x, to_p_major), self.second)
        return _columns(x, self.out)

    def undo(self, x: Float[Tensor, "tokens n"]) -> Float[Tensor, "tokens n"]:
        """`x M`, the inverse of `apply`: everything transposed, the last first."""
        to_q_major, to_p_major = self._axis_swaps()
        x = _turn(_columns(x, torch.argsort(self.out)), self.second.mT)
        x = _turn(_columns(x, to_q_major), self.first.mT)
        return _columns(x, to_p_major[torch.argsort(self.into)])

    def apply_to_outputs(self, w: Float[Tensor, "n in"]) -> Float[Tensor, "n in"]:
        """`M w`: every column of w is turned by M. Two to three times as fast as `apply` of w^T."""
        pieces = self._pieces(_rows(w, self.into))
        pieces = self.second.to(w) @ _along_p(pieces, self.first)
        return _rows(pieces.reshape(w.shape), self.out)

    def undo_at_outputs(self, w: Float[Tensor, "n in"]) -> Float[Tensor, "n in"]:
        """`M^T w`, the inverse of `apply_to_outputs`: the last first, as in `undo`."""
        pieces = self._pieces(_rows(w, torch.argsort(self.out)))
        pieces = _along_p(self.second.mT.to(w) @ pieces, self.first.mT)
        return _rows(pieces.reshape(w.shape), torch.argsort(self.into))

    def _pieces(self, w: Float[Tensor, "n in"]) -> Float[Tensor, "p q in"]:
        return w.view(self.first.shape[1], self.second.shape[1], -1)

    def _axis_swaps(self) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"]]:
        """Orders that put the p axis of a p x q vector last, and the q axis last again. Picking
        columns is much faster than transposing many small matrices."""
        places = torch.arange(len(self.into)).view(self.first.shape[1], self.second.shape[1])
        to_q_major = places.T.flatten()
        return to_q_major, torch.argsort(to_q_major)


def _columns(x: Float[Tensor, "tokens n"], order: Int[Tensor, " n"]) -> Float[Tensor, "tokens n"]:
    return x.contiguous().index_select(1, order.to(x.device))


def _rows(w: Float[Tensor, "n in"], order: Int[Tensor, " n"]) -> Float[Tensor, "n in"]:
    return w.index_select(0, order.to(w.device))


def _along_p(w: Float[Tensor, "p q in"], first: Float[Tensor, "_ p p"]) -> Float[Tensor, "p q in"]:
    return (first.to(w) @ w.transpose(0, 1)).transpose(0, 1)


def _turn(
    x: Float[Tensor, "tokens n"], blocks: Float[Tensor, "_ size size"]
) -> Float[Tensor, "tokens n"]:
    """Pieces of `size` neighbouring columns turned: all by one block, or each by its own."""
    blocks, size = blocks.mT.to(x), blocks.shape[1]
    if len(blocks) == 1:
        return (x.view(-1, size) @ blocks[0]).view(x.shape)
    pieces = x.unflatten(1, (-1, size)).transpose(0, 1)
    return torch.bmm(pieces, blocks).transpose(0, 1).flatten(1)


def random_rotation(width: int, mode: Mode, seed: int, stream: int = 0) -> Rotation:
    """The rotation of a seed; different streams of one seed are independent."""
    words = [seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF, stream]
    random = np.random.RandomState(words)
    p, q = factors(width)
    shared = mode == "kronecker"
    into = random.permutation(width)
    first, second = _haar(random, 1 if shared else q, p), _haar(random, 1 if shared else p, q)
    out = random.permutation(width)
    if mode == "blocks_unpermuted":
        into = out = np.arange(width)
    return Rotation(*(torch.from_numpy(part) for part in (first, second, into, out)))


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


def _haar(random: np.random.RandomState, count: int, size: int) -> np.ndarray:
    """`count` independent uniform rotations, float64."""
    orthogonal, triangle = np.linalg.qr(random.standard_normal((count, size, size)))
    orthogonal *= np.sign(np.diagonal(triangle, axis1=1, axis2=2))[:, None, :]
    orthogonal[:, :, 0] *= np.sign(np.linalg.det(orthogonal))[:, None]
    return orthogonal
