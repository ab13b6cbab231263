"""Second moments of what a linear layer reads, gathered while calibration text streams by.

Tokens are rows here: for `x` of shape [tokens, m] the Gram matrix is `G = sum x^T x`
(`X X^T` of the usual column notation), never divided by the number of tokens. Every
statistic is a plain sum, so two halves of a calibration set add up (`a + b`), and it
does not matter how tokens were batched.

The cross moment with the full-precision model's input is kept as its difference from the Gram
matrix, the residual moment `R = D - G = sum (x_full - x)^T x`: small where both models agree, so
that a part of the tokens is enough to know it (`cross_stride`). The first token of a sequence often
has a massive activation and stands for no other; it counts by itself.

Only the upper triangle of `G` is accumulated, in a few panels of columns: the panel
`i:j` is multiplied with the columns from `i` on, which needs about 0.56 of the work of
the full product. The triangle is mirrored when the matrix is read.

Everything derived from the sums (spectra, Cholesky factors) is computed once by `once`
and so shared by all linears that read the same tensor.
"""

import enum
from collections.abc import Callable, Hashable
from typing import Any, Self, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from q2n.errors import InputError, NumericalError

_PANELS = 6

T = TypeVar("T")

LinearMap = Callable[[Float[Tensor, "tokens in"]], Float[Tensor, "tokens in"]]
"""Does to every row what one m x m matrix does."""


class RequiredStatistics(enum.Flag):
    """Which statistics of a layer's input a method reads."""

    NONE = 0
    GRAM = enum.auto()
    """`G = sum x x^T`."""
    CROSS = enum.auto()
    """`D = sum x_full x^T` with the input that the full-precision model has there, as `D - G`
    (reading D itself takes GRAM as well)."""
    POSITIONS = enum.auto()
    """The mean activation at each token position, over sequences of one length."""
    FOLDS = enum.auto()
    """The moments of two halves of the windows by themselves, for what is chosen held out."""


class InputStatistics:
    """Running sums over the tokens that reach one input site of width m."""

    def __init__(
        self,
        width: int,
        needs: RequiredStatistics = RequiredStatistics.GRAM,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        cross_stride: int = 1,
    ) -> None:
        """`cross_stride`: after a sequence's first token one of so many counts, as much as all of
        them, in the residual moment. Tokens that come as no sequences all count."""
        self.width = width
        self.required_statistics = needs
        self.cross_stride = cross_stride
        self.device = torch.device(device)
        self.dtype = dtype
        self.tokens = 0
        self.sequences = 0
        self._gram = self._zeros(RequiredStatistics.GRAM)
        self._residual = self._zeros(RequiredStatistics.CROSS)
        self._positions: Float[Tensor, "length in"] | None = None
        self._mirrored = True
        self._derived: dict[Hashable, Any] = {}
        self._folds: list[InputStatistics] = []
        if RequiredStatistics.FOLDS in needs:
            rest = needs & ~(RequiredStatistics.FOLDS | RequiredStatistics.POSITIONS)
            self._folds = [self._empty(rest) for _ in range(2)]

    def update(
        self, x: Float[Tensor, "*batch in"], x_full: Float[Tensor, "*batch in"] | None = None
    ) -> None:
        """Add the tokens of `x`; `x_full` is the full-precision model's input at the same
        tokens, needed for CROSS alone. POSITIONS needs `x` of shape [sequences, length, m].

        Raises:
            InputError: a shape that does not fit, or sequences of another length.
        """
        if x.shape[-1] != self.width:
            raise InputError(f"expected inputs of width {self.width}, got {tuple(x.shape)}")
        values = x.detach().to(self.device, self.dtype)
        rows = values.reshape(-1, self.width)
        self._derived.clear()
        self.tokens += rows.shape[0]
        if self._folds:
            self._update_folds(x, x_full)
        else:
            if self._gram is not None:
                self._add_gram(rows)
            if self._residual is not None:
                self._add_residual(values, x_full)
        if RequiredStatistics.POSITIONS in self.required_statistics:
            self._add_positions(values)

    def __add__(self, other: Self) -> "InputStatistics":
        """The statistics of both sets of tokens."""
        if self._kind != other._kind:
            raise InputError(
                "cannot add statistics of width {} with {} and stride {} and of width {} with {} "
                "and stride {}".format(*self._kind, *other._kind)
            )
        total = self._empty(self.required_statistics)
        total.tokens = self.tokens + other.tokens
        total.sequences = self.sequences + other.sequences
        total._mirrored = self._mirrored and other._mirrored
        total._gram = _sum(self._gram, other._gram)
        total._residual = _sum(self._residual, other._residual)
        total._positions = _sum(self._positions, other._positions)
        total._folds = [a + b for a, b in zip(self._folds, other._folds, strict=True)]
        return total

    @property
    def gram(self) -> Float[Tensor, "in in"]:
        """`G = sum x x^T`, symmetric to the last bit, in the units of activation squared."""
        if self._folds:
            return self.once(
                RequiredStatistics.GRAM, lambda: self._folds[0].gram + self._folds[1].gram
            )
        gram = _required(self._gram, RequiredStatistics.GRAM)
        if not self._mirrored:
            _mirror_upper(gram)
            self._mirrored = True
        return gram

    @property
    def cross(self) -> Float[Tensor, "in in"]:
        """`D = sum x_full x^T`: rows belong to the full-precision input."""
        return self.gram + self.residual

    @property
    def residual(self) -> Float[Tensor, "in in"]:
        """`R = D - G = sum (x_full - x) x^T`, or what a part of the tokens says of it."""
        if self._folds:
            return self.once(
                RequiredStatistics.CROSS, lambda: self._folds[0].residual + self._folds[1].residual
            )
        return _required(self._residual, RequiredStatistics.CROSS)

    @property
    def folds(self) -> "list[InputStatistics]":
        """The two halves, whose sum is the whole; windows go to them in turn. None where one
        has seen no token (a single window, an expert that is hardly used).

        Raises:
            InputError: gathered without FOLDS.
        """
        if not self._folds:
            raise InputError(
                f"these input statistics were gathered without {RequiredStatistics.FOLDS}"
            )
        return self._folds if all(fold.tokens for fold in self._folds) else []

    @property
    def position_gram(self) -> Float[Tensor, "in in"]:
        """`A^T A`, A of shape [length, m] the mean over sequences of the activation at
        each token position. The released code takes it for the Gram (docs/mathematics.md)."""
        mean = _required(self._positions, RequiredStatistics.POSITIONS) / self.sequences
        return mean.T @ mean

    def once(self, key: Hashable, compute: Callable[[], T]) -> T:
        """`compute()`, remembered under `key` until more tokens arrive. The key must hold
        every option on which the result depends."""
        if key not in self._derived:
            self._derived[key] = compute()
        return self._derived[key]

    def in_basis(self, inputs: "LinearMap") -> "InputStatistics":
        """The statistics of the tokens that `inputs` makes of these: with T its matrix,
        `T G T^T` and `T R T^T`. Nothing derived is taken over."""
        moved = self._empty(self.required_statistics)
        moved.tokens, moved.sequences = self.tokens, self.sequences
        moved._folds = [fold.in_basis(inputs) for fold in self._folds]
        if self._gram is not None:
            gram = inputs(inputs(self.gram).T)
            moved._gram = (gram + gram.T) / 2  # symmetric to the last bit again
        if self._residual is not None:
            moved._residual = inputs(inputs(self._residual).T).T
        if self._positions is not None:
            moved._positions = inputs(self._positions)
        return moved

    def require_finite(self, name: str) -> None:
        """Raise unless tokens were seen and their moments are finite.

        Raises:
            NumericalError: naming the layer (or input site) `name`.
        """
        if self.tokens == 0:
            raise NumericalError(f"{name}: no calibration token reached this layer")
        for part in self._folds:
            if part.tokens:
                part.require_finite(name)
        for what, moments in (("Gram matrix", self._gram), ("cross moment", self._residual)):
            if moments is not None and not torch.isfinite(moments.sum()):
                raise NumericalError(
                    f"{name}: the {what} of its input is not finite, so an activation is NaN, "
                    "infinite or overflows; run the model in bfloat16 or float32"
                )

    @property
    def _kind(self) -> tuple[int, RequiredStatistics, int]:
        return self.width, self.required_statistics, self.cross_stride

    def _empty(self, needs: RequiredStatistics) -> "InputStatistics":
        return InputStatistics(self.width, needs, self.device, self.dtype, self.cross_stride)

    def _zeros(self, need: RequiredStatistics) -> Tensor | None:
        if (
            need not in self.required_statistics
            or RequiredStatistics.FOLDS in self.required_statistics
        ):
            return None
        return torch.zeros(self.width, self.width, dtype=self.dtype, device=self.device)

    def _update_folds(self, x: Tensor, x_full: Tensor | None) -> None:
        """Windows in turn, the odd ones to the fold with fewer tokens; loose tokens (an expert's)
        by halves."""
        few, many = sorted(self._folds, key=lambda fold: fold.tokens)
        if x.ndim < 3:
            half = -(-len(x) // 2)
            cuts = (slice(None, half), slice(half, None))
        else:
            cuts = (slice(0, None, 2), slice(1, None, 2))
        for fold, cut in zip((few, many), cuts, strict=True):
            if len(x[cut]):
                fold.update(x[cut], None if x_full is None else x_full[cut])

    def _add_gram(self, rows: Float[Tensor, "tokens in"]) -> None:
        assert self._gram is not None
        for i, j in _panels(self.width):
            self._gram[i:j, i:].addmm_(rows[:, i:j].T, rows[:, i:])
        self._mirrored = False

    def _add_residual(self, x: Float[Tensor, "*batch in"], x_full: Tensor | None) -> None:
        assert self._residual is not None
        if x_full is None or x_full.shape != x.shape:
            got = None if x_full is None else tuple(x_full.shape)
            raise InputError(f"a cross moment needs x_full of the shape of x, got {got}")
        full, weight = x_full.detach(), None
        if self.cross_stride > 1 and x.ndim > 2:
            kept, weight = _sampled(x.shape[-2], self.cross_stride)
            x, full = x[..., kept, :], full[..., kept, :]
        difference = full.to(self.device, self.dtype) - x
        if weight is not None:
            difference *= weight.to(x).unsqueeze(1)
        self._residual.addmm_(difference.reshape(-1, self.width).T, x.reshape(-1, self.width))

    def _add_positions(self, values: Float[Tensor, "*batch in"]) -> None:
        if values.ndim != 3:
            raise InputError(
                "the mean activation at each position needs inputs [sequences, length, width], "
                f"got {tuple(values.shape)}; use gram='second_moment'"
            )
        added = values.sum(0)
        if self._positions is not None and self._positions.shape != added.shape:
            raise InputError(
                "the mean activation at each position needs sequences of one length, got "
                f"{added.shape[0]} after {self._positions.shape[0]}; use gram='second_moment'"
            )
        self._positions = added if self._positions is None else self._positions + added
        self.sequences += values.shape[0]


def _sampled(length: int, stride: int) -> tuple[list[int], Float[Tensor, " kept"]]:
    """Positions of a sequence that count, and for how many each."""
    kept = [0, *range(1, length, stride)]
    weight = torch.full((len(kept),), (length - 1) / max(len(kept) - 1, 1))
    weight[0] = 1
    return kept, weight


def _panels(width: int) -> list[tuple[int, int]]:
    step = -(-width // _PANELS)
    return [(i, min(i + step, width)) for i in range(0, width, step)]


def _mirror_upper(matrix: Float[Tensor, "in in"]) -> None:
    """Copy the upper triangle onto the lower one, in place."""
    for i, j in _panels(matrix.shape[0]):
        corner = matrix[i:j, i:j]
        corner.copy_(corner.triu() + corner.triu(1).T)
        matrix[j:, i:j] = matrix[i:j, j:].T


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    if a is None or b is None:
        return b if a is None else a
    if a.shape != b.shape:
        raise InputError(f"cannot add statistics of shapes {tuple(a.shape)} and {tuple(b.shape)}")
    return a + b.to(a.device)


def _required(moments: Tensor | None, need: RequiredStatistics) -> Tensor:
    if moments is None:
        raise InputError(f"these input statistics were gathered without {need}")
    return moments
