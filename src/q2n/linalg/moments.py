"""Two moments of a layer's input as running sums (statistics.py has the letters).

The sums are float64. The product of each window is added by itself, so that it does not matter how
windows were batched; what comes without windows is one product.
"""

from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor

from q2n.errors import InputError
from q2n.linalg.products import fast_products
from q2n.linalg.required_statistics import SUM
from q2n.linalg.residual import add_residual, require_channels
from q2n.linalg.triangle import add_gram, symmetric, triangle_size


class Moment:
    """A sum over tokens; those of two sets of tokens add up."""

    def __init__(self, total: Float[Tensor, "..."], width: int) -> None:
        """
        Args:
            total: the sum so far, changed in place.
            width: m, of the input.
        """
        self.total, self.width = total, width

    def __add__(self, other: Self) -> Self:
        """Of both sets of tokens, where this one lies."""
        if self.total.shape != other.total.shape:
            shapes = tuple(self.total.shape), tuple(other.total.shape)
            raise InputError("cannot add statistics of shapes {} and {}".format(*shapes))
        return type(self)(self.total + other.total.to(self.total.device), self.width)


class GramMoment(Moment):
    """`sum x^T x`, of which the upper triangle is added up."""

    @classmethod
    def none(cls, width: int, device: torch.device) -> Self:
        """Of no token."""
        return cls(torch.zeros(triangle_size(width), dtype=SUM, device=device), width)

    def add(self, x: Float[Tensor, "*batch in"], dtype: torch.dtype) -> None:
        """Add the tokens of `x`, which were of this dtype."""
        with fast_products(self.total.device, dtype):
            for window in _windows(x):
                add_gram(self.total, window)

    def matrix(self, dtype: torch.dtype) -> Float[Tensor, "in in"]:
        """The whole matrix, symmetric to the last bit."""
        return symmetric(self.total, self.width, dtype)


class LackMoment(Moment):
    """`sum (full - own)^T x`: what a tensor lacks of the full-precision model's."""

    @classmethod
    def none(cls, rows: int, width: int, device: torch.device) -> Self:
        """Of no token; `rows` channels lack something."""
        return cls(torch.zeros(rows, width, dtype=SUM, device=device), width)

    def add(
        self,
        x: Float[Tensor, "*batch in"],
        own: Float[Tensor, "..."] | None,
        full: Float[Tensor, "..."] | None,
        dtype: torch.dtype,
        stride: int,
    ) -> None:
        """Add the tokens of `x`.

        Args:
            own: the tensor at these tokens; `full` of the full-precision model.
            dtype: of the difference.
            stride: one in how many tokens of a window counts (residual.py).

        Raises:
            InputError: `own` or `full` is not there, or has another shape.
        """
        own, full = (require_channels(one, x, len(self.total)) for one in (own, full))
        stride = stride if x.ndim > 2 else 1
        device = self.total.device
        for window, less, more in zip(_windows(x), _windows(own), _windows(full), strict=True):
            less, more = less.detach().to(device), more.detach().to(device, dtype)
            add_residual(self.total, window, less, more, stride)

    def matrix(self, dtype: torch.dtype) -> Float[Tensor, "out in"]:
        """The sum."""
        return self.total.to(dtype)


def _windows(x: Float[Tensor, "*batch in"]) -> Float[Tensor, "windows tokens in"]:
    """One after the other; loose tokens as a single one."""
    return x.reshape(len(x) if x.ndim > 2 else 1, -1, x.shape[-1])
