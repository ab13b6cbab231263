"""Columns in groups."""

from jaxtyping import Shaped
from torch import Tensor
from torch.nn.functional import pad


def in_groups(values: Shaped[Tensor, "out m"], size: int) -> Shaped[Tensor, "out groups size"]:
    """Neighbouring columns, `size` a group; zeros fill up a shorter last group."""
    return pad(values, (0, -values.shape[1] % size)).unflatten(1, (-1, size))
