"""What a quantization method is given, and what it promises: the contract of this room."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from q2n.errors import InputError
from q2n.layers.quantized import QuantizedLinear, StorageSpec
from q2n.linalg.factor import Feedback, feedback
from q2n.linalg.statistics import InputStatistics, RequiredStatistics
from q2n.transforms.model_changes import ModelChanges


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerProblem:
    """One linear layer to quantize."""

    name: str
    """Full name in the model, for messages and records."""
    weight: Float[Tensor, "out in"]
    """The original weight in float32."""
    statistics: InputStatistics | None
    """Statistics of the layer's input; None for a method that needs none."""
    scale_dtype: torch.dtype = torch.float32
    """The dtype in which the checkpoint stores scales: scales are rounded to it before
    codes are chosen, so that what was optimised is what is stored."""
    seed: int = 0


Wrap = Callable[..., "Wrapper"]
"""Puts something around the method that it gets as `inner`."""


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """A quantization method; its fields are its options.

    A subclass adds fields, a one-line docstring (`q2n methods` prints it) and
    `quantize`. It validates its options in `__post_init__` with `InputError`.
    """

    name: ClassVar[str]
    """Name on the command line."""
    bits_offered: ClassVar[str]
    """The widths that its options can ask for, in words (`q2n methods` prints it)."""

    @property
    def title(self) -> str:
        """What is done, in words, for a model card."""
        return self.name

    @property
    @abstractmethod
    def required_statistics(self) -> RequiredStatistics:
        """Which input statistics `quantize` reads."""

    @property
    @abstractmethod
    def storage(self) -> StorageSpec:
        """What `quantize` returns, as far as the options tell: by it a checkpoint format says,
        before any work is done, whether it can hold the result."""

    @property
    def surroundings(self) -> ModelChanges | None:
        """What the method wants done to the model around its layers, if anything."""
        return None

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

    def with_step(self, step: Wrap) -> "Method":
        """This method with something around it: `step(inner=self)`, unless a method has a better
        place for that than outside of all that it does."""
        return step(inner=self)


@dataclass(frozen=True, kw_only=True)
class Wrapper(Method):
    """A method that does something before or after another one."""

    inner: Method
    """The method that quantizes."""

    @property
    def storage(self) -> StorageSpec:
        return self.inner.storage

    @property
    def surroundings(self) -> ModelChanges | None:
        return self.inner.surroundings

    def check(self, name: str, shape: tuple[int, int]) -> None:
        self.inner.check(name, shape)


@runtime_checkable
class Compensating(Protocol):
    """A method with error feedback that can tell from which weight it rounded."""

    def quantize_compensated(
        self, problem: LayerProblem
    ) -> tuple[QuantizedLinear, Float[Tensor, "out in"]]:
        """As `quantize`, with the weight as the feedback had updated it, in the layer's
        own column order."""


def shared_feedback(problem: LayerProblem, damping: float, *, descending: bool) -> Feedback:
    """The factor of the damped Gram matrix, computed once an input site.

    Raises:
        NumericalError: the statistics are not finite, or no damping helps.
    """
    statistics = problem.statistics
    assert statistics is not None
    statistics.require_finite(problem.name)
    return statistics.once(
        ("feedback", damping, descending),
        lambda: feedback(statistics.gram, damping, descending=descending, name=problem.name),
    )


def check_feedback(damping: float, block_size: int) -> None:
    """Refuse options of the feedback that cannot be."""
    if not (math.isfinite(damping) and damping >= 0):
        raise InputError(f"damping must be finite and at least 0, got {damping}")
    if block_size < 1:
        raise InputError(f"block_size must be at least 1, got {block_size}")
