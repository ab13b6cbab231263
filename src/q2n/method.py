"""What a quantization method receives, and what it promises."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Protocol, get_args, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from q2n.errors import NumericalError
from q2n.grids.learned_range import Clipping, RangeFit
from q2n.layers.learned_factors import FactorFit
from q2n.layers.quantized import QuantizedLinear, StorageSpec
from q2n.linalg.factor import Feedback, feedback
from q2n.linalg.finite import all_finite
from q2n.linalg.required_statistics import RequiredStatistics
from q2n.linalg.statistics import InputStatistics
from q2n.option_types import Bits, check_fields


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerProblem:
    """One linear layer to quantize."""

    name: str
    """Full name in the model, for messages and records."""
    weight: Float[Tensor, "out in"]
    """The original weight in float32."""
    statistics: InputStatistics | None
    """Statistics of the layer's input; None for a method that needs none."""
    gradients: Float[Tensor, "out out"] | None = None
    """`sum g^T g` of the gradients of the model's predictions at the layer's output, up to a
    factor; None for a method that does not read them."""
    clipping: Clipping | None = None
    """Shares of the ranges of the method's grid, where it has these learned (`range_fit`)."""
    scale_dtype: torch.dtype = torch.float32
    """The dtype in which the checkpoint stores scales: scales are rounded to it before
    codes are chosen, so that what was optimised is what is stored."""
    seed: int = 0

    @property
    def measured(self) -> InputStatistics:
        """The statistics, checked: present, not empty, finite.

        Raises:
            NumericalError: no token reached the layer, or they are not finite.
        """
        assert self.statistics is not None, "the method did not say that it requires statistics"
        self.statistics.require_finite(self.name)
        return self.statistics

    @property
    def output_moments(self) -> Float[Tensor, "out out"]:
        """`gradients`, checked: present, finite.

        Raises:
            NumericalError: they are not finite.
        """
        assert self.gradients is not None, "the method did not say that it reads gradients"
        if not all_finite(self.gradients):
            raise NumericalError(
                f"{self.name}: the gradients of the predictions at its output are not finite; use "
                "--output-feedback false, or --dtype float32"
            )
        return self.gradients

    def goal(self, statistics: InputStatistics) -> Float[Tensor, "out in"]:
        """`sum y x^T`, y what the layer should give at x: W x_full, and, where S was gathered, a
        share of what the residual stream lacks that it writes to. `W D + S`, of all tokens or of a
        fold."""
        goal = self.weight @ statistics.cross
        lack = statistics.stream_lack
        return goal if lack is None else goal + lack


@dataclass(frozen=True)
class Work:
    """About how much `quantize` computes on a layer of o rows and m columns, for forecasts: in
    operations of matrix products in float32, or what takes as long."""

    layer: float = 0.0
    """Of each layer, in products of 2 o m^2 operations."""
    site: float = 0.0
    """Of its input site, once, in products of 2 m^3 operations."""
    alone: float = 0.0
    """Of each layer as well, in products of 2 m^3 operations: a factor that is its own."""
    rows: float = 0.0
    """Of each layer, in products of 2 o^2 m operations."""
    output: float = 0.0
    """Of each layer, in products of 2 o^3 operations: a factor of its outputs' moments."""
    weight: float = 0.0
    """Of each weight, in operations: going through columns, searches. By processor time of layers
    of 256 to 512 rows and columns beside that of a product (docs/LOG.md)."""

    def __add__(self, other: "Work") -> "Work":
        return Work(
            self.layer + other.layer,
            self.site + other.site,
            self.alone + other.alone,
            self.rows + other.rows,
            self.output + other.output,
            self.weight + other.weight,
        )


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """A quantization method; its fields are its options.

    A subclass adds fields, a one-line docstring (`q2n methods` prints it) and
    `quantize`. The types of its fields say which values they take (option_types.py); options that
    contradict each other are refused with `InputError` in `__post_init__`.
    """

    name: ClassVar[str]
    """Name on the command line."""
    strategy: ClassVar[str] = ""
    """What it mainly rests on, in the classes of PTQ-Bench (docs/methods.md)."""
    bits_offered: ClassVar[str] = ", ".join(map(str, get_args(Bits)))
    """The widths that its options can ask for, in words (`q2n methods` prints it)."""

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def title(self) -> str:
        """What is done, in words, for a model card."""
        return self.name

    @property
    @abstractmethod
    def required_statistics(self) -> RequiredStatistics:
        """Which input statistics `quantize` reads."""

    @property
    def reads_gradients(self) -> bool:
        """Whether `quantize` reads the second moments of gradients at the layer's output."""
        return False

    @property
    def range_fit(self) -> RangeFit | None:
        """How the ranges of its grid are learned on the block, before anything is rounded; None:
        they are not."""
        return None

    @property
    def factor_fit(self) -> FactorFit | None:
        """How what its layers store besides codes is learned on the block, after everything in it
        is rounded; None: it is not."""
        return None

    @property
    def fits_blocks(self) -> bool:
        """Whether it takes gradient steps on whole blocks, and so needs the full-precision
        model's outputs."""
        return self.range_fit is not None or self.factor_fit is not None

    @property
    def work(self) -> Work:
        """What `quantize` computes. With a Gram matrix: its factor takes 0.6 products, error
        feedback about one at the rate of a product, and the output error another one
        (docs/LOG.md, parts against the rate of a matrix product); going through the columns."""
        return Work(layer=2.0, site=0.6, weight=1500.0) if self.required_statistics else Work()

    @property
    @abstractmethod
    def storage(self) -> StorageSpec:
        """What `quantize` returns, as far as the options tell: by it a checkpoint format says,
        before any work is done, whether it can hold the result."""

    def storage_of(self, name: str) -> list[StorageSpec]:
        """What `quantize` may return for the layer of this full name."""
        return [self.storage]

    @property
    def trial(self) -> "Method":
        """A cheaper form, whose errors are much like this one's: by it widths are compared before
        anything is quantized."""
        return self

    def check(self, name: str, shape: tuple[int, int]) -> None:  # noqa: B027 - optional
        """Refuse, before any work is done, a layer of `shape` (out, in) that the options do
        not fit; any shape will do unless a method says otherwise.

        Raises:
            InputError: naming the layer and what would do.
        """

    @abstractmethod
    def quantize(self, problem: LayerProblem) -> QuantizedLinear:
        """Quantize one layer.

        Raises:
            InputError: the options do not fit the layer's shape.
            NumericalError: the statistics cannot be used (not finite, not positive definite).
        """


@dataclass(frozen=True, kw_only=True)
class Wrapper(Method):
    """A method that does something before or after another one."""

    inner: Method
    """The method that quantizes."""

    @property
    def storage(self) -> StorageSpec:
        return self.inner.storage

    @property
    def reads_gradients(self) -> bool:
        return self.inner.reads_gradients

    @property
    def range_fit(self) -> RangeFit | None:
        return self.inner.range_fit

    @property
    def factor_fit(self) -> FactorFit | None:
        return self.inner.factor_fit

    @property
    def trial(self) -> Method:
        return self.inner.trial

    @property
    def own_work(self) -> Work:
        """What it computes besides the inner method: nothing unless a wrapper says otherwise."""
        return Work()

    @property
    def work(self) -> Work:
        return self.inner.work + self.own_work

    def check(self, name: str, shape: tuple[int, int]) -> None:
        self.inner.check(name, shape)


@runtime_checkable
class Compensating(Protocol):
    """A method with error feedback that can tell from which weight it rounded."""

    def compensated(
        self, problem: LayerProblem, quantized: Float[Tensor, "out in"]
    ) -> Float[Tensor, "out in"]:
        """The weight from which the method rounded the columns of its result `quantized`: W as
        the feedback of all earlier blocks of columns had updated it. Within a block it is not
        updated, as in Q2N's released code."""


def shared_feedback(problem: LayerProblem, damping: float, *, descending: bool) -> Feedback:
    """The factor of the damped Gram matrix, computed once per input site.

    Raises:
        NumericalError: the statistics are not finite, or no damping helps.
    """
    statistics = problem.measured
    return statistics.once(
        ("feedback", damping, descending),
        lambda: feedback(statistics.gram, damping, descending=descending, name=problem.name),
    )
