"""Second moments of what a linear layer reads, gathered while calibration text streams by.

Letters: m the width of an input site; x of shape [tokens, m] the inputs that the quantized prefix
of the model gives there, x_full those of the full-precision model at the same tokens.

    G = sum x^T x            Gram matrix (X X^T where tokens are columns)
    D = sum x_full^T x       cross moment
    R = D - G                residual moment
    S = a sum (s_full - s)^T x    of a layer that writes to a residual stream s: the share a of what
                             the stream lacks of the full-precision one before it does

None is divided by the number of tokens. Every statistic is a plain sum (but for the largest entry
of each channel), so the statistics of two parts of the calibration text add up (`a + b`).

It does not matter how windows were batched, or divided among several ranks: the bits are the same.
The product of each window is computed by itself, in float32, and products are added up in float64.
A float32 number has 24 of the 53 bits there, so that a sum of 128 windows is not rounded at all
while its terms lie within a factor of 2^22; where they do not, its order may change the last bit
of float64, which float32 sees once in 2^28 times. Tokens that come without windows (those of an
expert) are one product a batch.

R is stored instead of D, for a part of the tokens is enough to estimate it, and S (residual.py).

The sums are in moments.py. The first reading of a moment makes it a matrix of float32 and gives the
memory of its sum free; from then on no token can be added. What is derived from moments (spectra,
Cholesky factors) is computed once by `once`, and so shared by all linears that read the same
tensor.
"""

from collections.abc import Callable, Hashable
from typing import Any, Protocol, Self, TypeVar, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from q2n.errors import InputError, NumericalError
from q2n.linalg.channel_sizes import ChannelSizes
from q2n.linalg.folds import Folds
from q2n.linalg.moments import GramMoment, LackMoment
from q2n.linalg.positions import PositionMoment
from q2n.linalg.products import as_factor
from q2n.linalg.required_statistics import RequiredStatistics

T = TypeVar("T")
S = TypeVar("S", bound="_Addable")

_MOMENTS = RequiredStatistics.GRAM | RequiredStatistics.CROSS
"""What each fold has of its own."""

LinearMap = Callable[[Float[Tensor, "tokens in"]], Float[Tensor, "tokens in"]]
"""Applies one m x m matrix to every row."""


class InputStatistics:
    """Running sums over the tokens that reach one input site of width m."""

    def __init__(
        self,
        width: int,
        required: RequiredStatistics = RequiredStatistics.GRAM,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        cross_stride: int = 1,
        first_window: int = 0,
        outputs: int = 0,
        share: float = 1.0,
    ) -> None:
        """
        Args:
            dtype: of products, and of what is read.
            cross_stride: one in how many tokens of a sequence counts in the residual moments.
            first_window: number of the first one in the text, of which these may be a part.
            outputs: of the layer that writes to a residual stream, if S is gathered.
            share: a in S.
        """
        self.width = width
        self.required = required
        self.cross_stride = cross_stride
        self.outputs, self.share = outputs, share
        self.device = torch.device(device)
        self.dtype = dtype
        self.tokens = 0
        self.sequences = 0
        self._gram: GramMoment | None = None
        self._residual: LackMoment | None = None
        self._stream: LackMoment | None = None
        self._positions: PositionMoment | None = None
        self._sizes: ChannelSizes | None = None
        if RequiredStatistics.SIZES in required:
            self._sizes = ChannelSizes.none(width, self.device)
        self._folds: Folds[InputStatistics] | None = None
        self._derived: dict[Hashable, Any] = {}
        if RequiredStatistics.FOLDS in required:
            first, second = (self._empty(required & _MOMENTS) for _ in range(2))
            self._folds = Folds(first, second, from_second=first_window % 2 == 1)
            return
        if RequiredStatistics.GRAM in required:
            self._gram = GramMoment.none(width, self.device)
        if RequiredStatistics.CROSS in required:
            self._residual = LackMoment.none(width, width, self.device)
        if outputs:
            self._stream = LackMoment.none(outputs, width, self.device)

    def update(
        self,
        x: Float[Tensor, "*batch in"],
        x_full: Float[Tensor, "*batch in"] | None = None,
        s: Float[Tensor, "*batch out"] | None = None,
        s_full: Float[Tensor, "*batch out"] | None = None,
    ) -> None:
        """Add the tokens of `x`. CROSS needs `x_full`, the full-precision model's input at the
        same tokens; S the residual streams `s` and `s_full` of both;
        POSITIONS needs `x` of shape [sequences, length, m].

        Raises:
            InputError: a shape that does not fit, or sequences of another length.
        """
        if x.shape[-1] != self.width:
            raise InputError(f"expected inputs of width {self.width}, got {tuple(x.shape)}")
        self._require_unread()
        values = as_factor(x.detach().to(self.device), self.dtype)
        self.tokens += values.numel() // self.width
        if self._folds is not None:
            self._folds.update(x, x_full, s, s_full)
        if self._gram is not None:
            self._gram.add(values, x.dtype)
        if self._residual is not None:
            self._residual.add(values, values, x_full, self.dtype, self.cross_stride)
        if self._stream is not None:
            self._stream.add(values, s, s_full, self.dtype, self.cross_stride)
        if RequiredStatistics.POSITIONS in self.required:
            self._positions = _sum(self._positions, PositionMoment.of(values))
            self.sequences += len(values)
        if self._sizes is not None:
            self._sizes = self._sizes + ChannelSizes.of(x if x_full is None else x_full)

    def __add__(self, other: "InputStatistics") -> "InputStatistics":
        """The statistics of both sets of tokens.

        Raises:
            InputError: widths, required statistics, strides or lengths of sequences differ.
        """
        if self._kind != other._kind:
            raise InputError(
                "cannot add statistics of width {} with {}, stride {} and {} outputs and of width "
                "{} with {}, stride {} and {} outputs".format(*self._kind, *other._kind)
            )
        self._require_unread()
        other._require_unread()
        total = self._empty(self.required)
        total.tokens = self.tokens + other.tokens
        total.sequences = self.sequences + other.sequences
        total._gram = _sum(self._gram, other._gram)
        total._residual = _sum(self._residual, other._residual)
        total._stream = _sum(self._stream, other._stream)
        total._positions = _sum(self._positions, other._positions)
        total._sizes = _sum(self._sizes, other._sizes)
        total._folds = _sum(self._folds, other._folds)
        return total

    def counts(self) -> list[int]:
        """Tokens and sequences, of the folds too: sums, and exact ones."""
        within = self._folds.both if self._folds is not None else []
        return [self.tokens, self.sequences, *(count for fold in within for count in fold.counts())]

    def sums(self) -> list[Float[Tensor, "..."]]:
        """All other sums, to which those of other tokens may be added; of G its triangle.
        `set_counts` must follow."""
        self._require_unread()
        own = [self._gram, self._residual, self._stream, self._positions]
        within = self._folds.both if self._folds is not None else []
        return [x.total for x in own if x is not None] + [x for fold in within for x in fold.sums()]

    def set_counts(self, counts: list[int]) -> None:
        """Take over what `counts` gave, or sums of such: the other sums are of these tokens."""
        self.tokens, self.sequences, *within = counts
        if self._folds is not None:
            middle = len(within) // 2
            self._folds.first.set_counts(within[:middle])
            self._folds.second.set_counts(within[middle:])

    @property
    def gram(self) -> Float[Tensor, "in in"]:
        """`G = sum x^T x`, symmetric to the last bit, in units of activation squared.

        Raises:
            InputError: gathered without GRAM.
        """
        return self.once(RequiredStatistics.GRAM, self._read_gram)

    @property
    def cross(self) -> Float[Tensor, "in in"]:
        """`D = sum x_full^T x`: rows belong to the full-precision input. Raises as `gram`."""
        return self.gram + self.residual

    @property
    def residual(self) -> Float[Tensor, "in in"]:
        """`R = D - G = sum (x_full - x)^T x`, estimated from a part of the tokens if
        `cross_stride` is above 1.

        Raises:
            InputError: gathered without CROSS.
        """
        return self.once(RequiredStatistics.CROSS, self._read_residual)

    @property
    def stream_lack(self) -> Float[Tensor, "out in"] | None:
        """`S = a sum (s_full - s)^T x`, estimated as `residual`; None where it is not gathered."""
        return self._lack() if self.outputs else None

    @property
    def sizes(self) -> ChannelSizes:
        """Sums and largest entries of |x| by channel. Raises as `gram`."""
        return _gathered(self._sizes, RequiredStatistics.SIZES).rounded()

    @property
    def folds(self) -> "list[InputStatistics]":
        """The statistics of two halves of the windows, which add up to these; none where one
        half has no token.

        Raises:
            InputError: gathered without FOLDS.
        """
        return _gathered(self._folds, RequiredStatistics.FOLDS).usable

    @property
    def position_gram(self) -> Float[Tensor, "in in"]:
        """`A^T A`, A of shape [length, m] the mean over sequences of the activation at
        each token position. Q2N's released code takes it for G (docs/mathematics.md).

        Raises:
            InputError: gathered without POSITIONS.
        """
        positions = _gathered(self._positions, RequiredStatistics.POSITIONS)
        mean = (positions.total / self.sequences).to(self.dtype)
        return mean.T @ mean

    def once(self, key: Hashable, compute: Callable[[], T]) -> T:
        """`compute()`, remembered under `key`, which must hold every option on which the result
        depends."""
        if key not in self._derived:
            self._derived[key] = compute()
        return self._derived[key]

    def in_basis(self, inputs: LinearMap, outputs: LinearMap) -> "InputStatistics":
        """The statistics of the tokens that `inputs` makes of these, and of streams that `outputs`
        makes of theirs: with T and U their matrices `T G T^T`, `T R T^T` and `U S T^T`. What `once`
        remembers is left behind."""
        moved = self._empty(self.required)
        moved._gram = moved._residual = moved._stream = None
        moved.tokens, moved.sequences = self.tokens, self.sequences
        if self._folds is not None:
            moved._folds = self._folds.map(lambda fold: fold.in_basis(inputs, outputs))
        elif RequiredStatistics.GRAM in self.required:
            gram = inputs(inputs(self.gram).T)
            moved._derived[RequiredStatistics.GRAM] = (gram + gram.T) / 2  # symmetric again
        if self._folds is None and RequiredStatistics.CROSS in self.required:
            moved._derived[RequiredStatistics.CROSS] = inputs(inputs(self.residual).T).T
        if self._folds is None and self.outputs:
            moved._derived["stream"] = outputs(inputs(self._lack()).T).T
        if self._positions is not None:
            positions = inputs(self._positions.total.to(self.dtype))
            moved._positions = PositionMoment(positions, self.width)
        return moved

    def require_finite(self, name: str) -> None:
        """Raise unless tokens were seen and their moments are finite.

        Raises:
            NumericalError: naming the layer (or input site) `name`.
        """
        if self.tokens == 0:
            raise NumericalError(f"{name}: no calibration token reached it; use --ignore for it")
        for fold in self._folds.both if self._folds is not None else []:
            if fold.tokens:
                fold.require_finite(name)
        largest = torch.finfo(self.dtype).max
        sums = {
            "Gram matrix": self._gram,
            "cross moment": self._residual,
            "residual stream's moment": self._stream,
            "sum of |x|": self._sizes,
        }
        for what, moment in sums.items():
            if moment is not None and not all(abs(x) <= largest for x in moment.total.aminmax()):
                raise NumericalError(
                    f"{name}: the {what} of its input is not finite: an activation is NaN or too "
                    "large; use --dtype float32, or leave the layer out with --ignore"
                )

    @property
    def _kind(self) -> tuple[int, RequiredStatistics, int, int]:
        return self.width, self.required, self.cross_stride, self.outputs

    def _empty(self, required: RequiredStatistics) -> "InputStatistics":
        return InputStatistics(
            self.width,
            required,
            self.device,
            self.dtype,
            self.cross_stride,
            outputs=self.outputs,
            share=self.share,
        )

    def _require_unread(self) -> None:
        assert not self._derived, "input statistics that have been read take no more tokens"

    def _read_gram(self) -> Float[Tensor, "in in"]:
        if self._folds is not None:
            first, second = self._folds.both
            return first.gram + second.gram
        gram, self._gram = _gathered(self._gram, RequiredStatistics.GRAM), None
        return gram.matrix(self.dtype)

    def _read_residual(self) -> Float[Tensor, "in in"]:
        if self._folds is not None:
            first, second = self._folds.both
            return first.residual + second.residual
        residual, self._residual = _gathered(self._residual, RequiredStatistics.CROSS), None
        return residual.matrix(self.dtype)

    def _lack(self) -> Float[Tensor, "out in"]:
        return self.once("stream", self._read_stream)

    def _read_stream(self) -> Float[Tensor, "out in"]:
        if self._folds is not None:
            first, second = (fold._lack() for fold in self._folds.both)
            return first + second
        assert self._stream is not None
        stream, self._stream = self._stream, None
        return stream.matrix(self.dtype).mul_(self.share)


@runtime_checkable
class _Addable(Protocol):
    def __add__(self, other: Self) -> Self: ...


def _sum(a: S | None, b: S | None) -> S | None:
    if a is None or b is None:
        return b if a is None else a
    return a + b


def _gathered(statistic: T | None, kind: RequiredStatistics) -> T:
    if statistic is None:
        raise InputError(f"these input statistics were gathered without {kind}")
    return statistic
