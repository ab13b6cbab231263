"""Looks at the JSON description of a Kronecker matrix (kronecker.py) before it is built.

A description may come from a damaged or hostile file: its sizes are bounded, its parts must fit
together, and what it calls a permutation, signs or a block of numbers must be one.
"""

import math
from collections.abc import Mapping
from itertools import chain
from math import prod
from typing import Any

LARGEST, LARGEST_BLOCK = 2**20, 2**13
"""Rows of a matrix, and of one block: more than any model's width has."""


def require_matrix(values: Mapping[str, Any]) -> None:
    """Refuse what is no description of a Kronecker matrix.

    Raises:
        ValueError, LookupError, TypeError, AttributeError: it is none.
    """
    sizes = [_size(factor) for factor in values["factors"]]
    rows = prod(sizes)
    if not sizes or rows > LARGEST or values.keys() - {"factors", "signs", "into", "out"}:
        raise ValueError(f"a matrix of {rows} rows from {sorted(values)}")
    for factor, size in zip(values["factors"], sizes, strict=True):
        if factor["kind"] == "dense":
            _require_blocks(factor["blocks"], size, rows)
    if "signs" in values and [abs(sign) for sign in values["signs"]] != [1] * rows:
        raise ValueError("signs that are not +1 and -1, one for each row")
    for order in ("into", "out"):
        if order in values and sorted(values[order]) != list(range(rows)):
            raise ValueError(f"{order} is no permutation")


def _size(factor: Mapping[str, Any]) -> int:
    kind, size = factor["kind"], factor["size"]
    most = LARGEST if kind == "identity" else LARGEST_BLOCK
    if kind not in ("hadamard", "dense", "identity") or type(size) is not int:
        raise ValueError("a factor of an unknown kind or size")
    if not 1 <= size <= most:
        raise ValueError(f"a factor of {size} rows")
    return size


def _require_blocks(blocks: Any, size: int, rows: int) -> None:
    """One square block, or one for each index of the other axes."""
    square = all(len(block) == size and {len(row) for row in block} == {size} for block in blocks)
    if len(blocks) not in (1, rows // size) or not square:
        raise ValueError(f"a dense factor that is not made of blocks of {size} rows")
    if not all(map(math.isfinite, chain.from_iterable(chain.from_iterable(blocks)))):
        raise ValueError("a dense factor with NaN or Inf")
