"""What a rewrite is given, and what it promises.

A rewrite moves a scale s > 0 of the channels of a tensor from what computes it to what reads it:

    x -> x / s,    W -> W diag(s),    so that  (W diag(s)) (x / s) = W x.

The block computes what it did, in full precision; what changes is how it rounds. Where the scale
goes (into a norm, or into the rows of the linear before) and who reads the tensor is not the
rewrite's to know: models/junctions.py.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from q2n.grids.uniform import UniformGrid
from q2n.linalg.groups import in_groups
from q2n.linalg.output_error import energy
from q2n.linalg.statistics import InputStatistics
from q2n.option_types import check_fields

Loss = Callable[[Iterable[Float[Tensor, "_ in"]], float], float]
"""What is lost if the linears that read a tensor, which stays x, have these weights, in order; or
infinity, where that is more than a number beside them."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Reading:
    """One tensor and the linears to quantize that read it."""

    name: str
    """Full name of the first of them, for messages."""
    weights: Sequence[Float[Tensor, "_ in"]]
    """Their original weights in float32; numbers of rows differ."""
    inputs: InputStatistics
    grid: UniformGrid | None = None
    """Round to nearest in the run's own bits and groups, for a rewrite that searches."""
    module_loss: Loss | None = None
    """At the output of the module around them, for a rewrite that judges by it."""

    def loss(self, weights: Iterable[Float[Tensor, "_ in"]], most: float) -> float:
        """`sum |F' - F|^2` over tokens, F the output of the module around the linears or, where
        none is given, their own outputs: `sum |(W' - W) x|^2`. It may be infinity instead of
        anything above `most`."""
        if self.module_loss is not None:
            return self.module_loss(weights, most)
        errors = (tried - weight for tried, weight in zip(weights, self.weights, strict=True))
        return sum(energy(error, self.inputs.gram) for error in errors)

    @property
    def group_size(self) -> int:
        """Columns that share a scale of the grid."""
        assert self.grid is not None
        return self.grid.granularity.group_size(self.inputs.width, self.name)

    def rounded(self, weight: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
        """The nearest points of the grid fitted to the weight."""
        assert self.grid is not None
        scale, zero = self.grid.fit(weight, torch.float32, self.name)
        values = in_groups(weight, self.group_size)
        scale, zero = scale.unsqueeze(-1), zero.unsqueeze(-1).float()
        code = torch.round(values / scale).add_(zero).clamp_(0, self.grid.top)
        return code.sub_(zero).mul_(scale).flatten(1)[:, : weight.shape[1]]


@dataclass(frozen=True, kw_only=True)
class Rewrite(ABC):
    """Changes weights before any method; its fields are its options."""

    name: ClassVar[str]
    """Name on the command line."""
    searches: ClassVar[bool]
    """Whether it tries roundings: it reads Gram matrices and a grid."""
    into_linears: ClassVar[bool]
    """Whether the linear before may take a scale, or norms alone."""

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    @abstractmethod
    def title(self) -> str:
        """What is done, in words, for a model card."""

    @property
    def judging_windows(self) -> int:
        """Calibration windows on which a search in front of several linears is judged by the output
        of the module around them; 0: by their own outputs."""
        return 0

    @property
    def clips(self) -> bool:
        """Whether `clipped` changes weights."""
        return False

    @property
    @abstractmethod
    def work(self) -> float:
        """About how much is computed for each layer, in products of its size (`method.Work`)."""

    @property
    def passes(self) -> int:
        """About how many windows run through each block for the search."""
        return 0

    @abstractmethod
    def scale(self, reading: Reading) -> Float[Tensor, " in"]:
        """s, above 0.

        Raises:
            NumericalError: the weights are not finite.
        """

    def clipped(
        self, reading: Reading, weight: Float[Tensor, "out in"], scale: Float[Tensor, " in"]
    ) -> Float[Tensor, "out in"]:
        """The weight `W diag(s)`, clamped where the rewrite says so; its input is x / s."""
        return weight
