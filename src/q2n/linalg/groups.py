"""Columns in groups: neighbouring columns of a row, `size` to a group.

With `columns` entries in a row there are ceil(columns / size) groups. Where the size does not
divide the columns, the last group is ragged: shorter than the others.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Int, Shaped
from torch import Tensor
from torch.nn.functional import pad

from q2n.errors import InputError


def in_groups(values: Shaped[Tensor, "*rows in"], size: int) -> Shaped[Tensor, "*rows groups size"]:
    """Entries by group. A ragged group is filled up with zeros; without one this is a view."""
    missing = -values.shape[-1] % size
    return (pad(values, (0, missing)) if missing else values).unflatten(-1, (-1, size))


def whole_and_ragged(
    values: Shaped[Tensor, "out in"], size: int
) -> list[Shaped[Tensor, "out groups _"]]:
    """Entries by group and nothing else: the whole groups, then the ragged one if there is one.
    Views."""
    whole = values.shape[1] // size * size
    ragged = [values[:, whole:].unsqueeze(1)] if whole < values.shape[1] else []
    return [values[:, :whole].unflatten(1, (-1, size)), *ragged]


def by_column(
    values: Shaped[Tensor, "out groups"], size: int, columns: int
) -> Shaped[Tensor, "out {columns}"]:
    """One value per group becomes one value per column."""
    return values.repeat_interleave(size, dim=1)[:, :columns]


def grouped(sizes: Mapping[str, int], size: int) -> bool:
    """Whether sizes by name of a dimension ("in", "groups") are those of groups of `size`."""
    return size <= sizes["in"] and sizes["groups"] == -(-sizes["in"] // size)


def groups_of_part(columns: slice, size: int) -> tuple[slice, int]:
    """The groups in which some neighbouring columns lie, and the size of a group within them.

    Raises:
        InputError: they begin inside a group and do not end there.
    """
    groups = slice(columns.start // size, -(-columns.stop // size))
    if columns.start % size and groups.stop - groups.start > 1:
        raise InputError(
            f"groups of {size} columns share a scale and cannot be cut at column {columns.start}"
        )
    return groups, min(size, columns.stop - columns.start)


def group_of_column(columns: int, size: int, device: torch.device) -> Int[Tensor, " in"]:
    """Index of the group to which each column belongs."""
    return torch.arange(columns, device=device) // size
