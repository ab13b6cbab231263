"""What a quantization method is given, and what it promises: the contract of this room."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from q2n.grids.quantized import Form, QuantizedLinear
from q2n.linalg.statistics import InputStatistics, Needs
from q2n.methods.surroundings import Surroundings


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


Wrap = Callable[..., "Wrapping"]
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
    def needs(self) -> Needs:
        """Which input statistics `quantize` reads."""

    @property
    @abstractmethod
    def form(self) -> Form:
        """What `quantize` returns, as far as the options tell: by it a checkpoint format says,
        before any work is done, whether it can hold the result."""

    @property
    def surroundings(self) -> Surroundings | None:
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
class Wrapping(Method):
    """A method that does something before or after another one."""

    inner: Method
    """The method that quantizes."""

    @property
    def form(self) -> Form:
        return self.inner.form

    @property
    def surroundings(self) -> Surroundings | None:
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
