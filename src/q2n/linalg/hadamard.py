r"""Hadamard matrices: entries +1 and -1, orthogonal rows, `H H^T = n I`.

- Sylvester: `H_2n = H_2 (x) H_n`, orders 2^k.
- Paley (1933): chi is the quadratic character of the field with q elements (1 on squares, -1 on
  the others, 0 at 0), `Q_ab = chi(a - b)`. Then `Q Q^T = q I - J`, `Q J = 0`, and with q = 3 mod 4
  (Q antisymmetric) `I + S` with `S = [[0, 1^T], [-1, Q]]` is Hadamard of order q + 1 (Paley I).
  With q = 1 mod 4 (Q symmetric) `C = [[0, 1^T], [1, Q]]` has `C C^T = q I` and
  `C (x) [[1, 1], [1, -1]] + I (x) [[1, -1], [-1, -1]]` is Hadamard of order 2 (q + 1) (Paley II).
- Williamson (1944): four symmetric circulants with `A^2 + B^2 + C^2 + D^2 = 4 n I` commute, so
  `[[A, B, C, D], [-B, A, -D, C], [-C, D, A, -B], [-D, -C, B, A]]` is Hadamard of order 4 n. Their
  first rows come from a search; those for n = 39 and 43 (orders 156 and 172, which widths of LLaMA
  need) are from published tables (Baumert and Hall 1965, London 2013).

A fast transform needs no single matrix of the full order: the Kronecker product of Hadamard
matrices is one, and one small product per factor applies it (kronecker.py).
"""

from functools import cache
from itertools import product

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from q2n.errors import InputError

LARGEST_SYLVESTER = 128
"""Above this a power of two is split into factors: two small products are faster than a large
one."""

_HALVES = {
    39: (
        "+++--+-+-----+--++--",
        "+++--++-+---+-+--+--",
        "++++---+--++----+-+-",
        "+---++-+-+-----+++-+",
    ),
    43: (
        "++---++++-+--+--++----",
        "+++-+-++--+-+-++++-+--",
        "++-++++++----+-+--++-+",
        "+---++--++++-+-+++-++-",
    ),
}
"""Williamson's first rows up to their middle; the rest mirrors them."""


@cache
def hadamard(order: int) -> Float[Tensor, "n n"]:
    """A Hadamard matrix, entries +1 and -1.

    Raises:
        InputError: none of the constructions gives this order.
    """
    if order > 0 and order & (order - 1) == 0:
        return _sylvester(order)
    for construct in (_paley_one, _paley_two, _williamson):
        matrix = construct(order)
        if matrix is not None:
            return torch.from_numpy(matrix).float()
    raise InputError(f"no Hadamard matrix of order {order} is known here")


def hadamard_orders(width: int) -> tuple[int, ...] | None:
    """Orders of Hadamard matrices whose product is `width`, at most one of them not a power of two,
    and that one first; None if there are none."""
    odd = width // (width & -width)
    if odd == 1:
        return _split(width)
    order = 4 * odd
    while width % order == 0:
        if _exists(order):
            return (order, *_split(width // order))
        order *= 2
    return None


@cache
def _exists(order: int) -> bool:
    try:
        hadamard(order)
    except InputError:
        return False
    return True


def _split(power: int) -> tuple[int, ...]:
    """A power of two as few, nearly equal powers of two; 1 as no factor."""
    exponent = power.bit_length() - 1
    count = -(-exponent // (LARGEST_SYLVESTER.bit_length() - 1))
    parts = [exponent // count + (i < exponent % count) for i in range(count)] if count else []
    return tuple(2**part for part in parts)


def _sylvester(order: int) -> Float[Tensor, "n n"]:
    matrix = torch.ones(1, 1)
    while len(matrix) < order:
        matrix = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]]), matrix)
    return matrix


def _paley_one(order: int) -> np.ndarray | None:
    q = order - 1
    if q % 4 != 3 or _prime_power(q) is None:
        return None
    skew = np.ones((order, order), dtype=np.int64)
    skew[1:, 0] = -1
    skew[1:, 1:] = _characters(q)
    skew[0, 0] = 0
    return skew + np.eye(order, dtype=np.int64)


def _paley_two(order: int) -> np.ndarray | None:
    q = order // 2 - 1
    if order % 4 or q % 4 != 1 or _prime_power(q) is None:
        return None
    conference = np.ones((q + 1, q + 1), dtype=np.int64)
    conference[1:, 1:] = _characters(q)
    conference[0, 0] = 0
    off, diagonal = np.array([[1, 1], [1, -1]]), np.array([[1, -1], [-1, -1]])
    return np.kron(conference, off) + np.kron(np.eye(q + 1, dtype=np.int64), diagonal)


def _williamson(order: int) -> np.ndarray | None:
    size, rest = divmod(order, 4)
    if rest or size not in _HALVES:
        return None
    a, b, c, d = (_circulant(half, size) for half in _HALVES[size])
    return np.block([[a, b, c, d], [-b, a, -d, c], [-c, d, a, -b], [-d, -c, b, a]])


def _circulant(half: str, size: int) -> np.ndarray:
    row = np.array([1 if sign == "+" else -1 for sign in half])
    row = np.concatenate([row, row[1:][::-1]])
    return row[(np.arange(size) - np.arange(size)[:, None]) % size]


def _prime_power(q: int) -> tuple[int, int] | None:
    """(p, k) with q = p^k, p an odd prime; None if q is no such power."""
    if q < 3 or q % 2 == 0:
        return None
    p = next(p for p in range(3, q + 1, 2) if q % p == 0)
    k = 0
    while q % p == 0:
        q, k = q // p, k + 1
    return (p, k) if q == 1 else None


def _characters(q: int) -> np.ndarray:
    """`chi(a - b)` for all elements a, b of the field with q elements."""
    power = _prime_power(q)
    assert power is not None
    p, k = power
    elements = np.array(list(product(range(p), repeat=k)))  # digits, the highest power first
    places = p ** np.arange(k - 1, -1, -1)
    squares = _squares(elements, p) @ places
    chi = np.full(q, -1)
    chi[squares] = 1
    chi[0] = 0
    differences = (elements[:, None] - elements[None]) % p @ places
    return chi[differences]


def _squares(elements: np.ndarray, p: int) -> np.ndarray:
    """The square of each element, as digits, modulo the first polynomial that gives a field: then
    x -> x^2 takes (q - 1) / 2 nonzero values twice each, and 0 once."""
    k = elements.shape[1]
    for tail in product(range(p), repeat=k):  # x^k = tail, highest power first
        squares = np.array([_square(element, np.array(tail), p) for element in elements])
        _, counts = np.unique(squares, axis=0, return_counts=True)
        if sorted(counts.tolist()) == [1] + [2] * ((len(elements) - 1) // 2):
            return squares
    raise AssertionError(f"no field with {p}^{k} elements")


def _square(element: np.ndarray, tail: np.ndarray, p: int) -> np.ndarray:
    wide = np.convolve(element, element)
    for i in range(len(wide) - len(tail)):  # the highest power left: x^k = tail
        wide[i + 1 : i + 1 + len(tail)] += wide[i] * tail
    return wide[-len(tail) :] % p
