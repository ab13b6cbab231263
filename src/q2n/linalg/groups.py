"""Columns in groups."""

import torch
from jaxtyping import Int, Shaped
from torch import Tensor
from torch.nn.functional import pad


def in_groups(values: Shaped[Tensor, "out in"], size: int) -> Shaped[Tensor, "out groups size"]:
    """Neighbouring columns, `size` a group; zeros fill up a shorter last group."""
    return pad(values, (0, -values.shape[1] % size)).unflatten(1, (-1, size))


def group_of_column(columns: int, group_size: int, device: torch.device) -> Int[Tensor, " in"]:
    """Index of the group to which each column belongs."""
    return torch.arange(columns, device=device) // group_size
