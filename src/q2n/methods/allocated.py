"""A method whose layers differ in width.

The widths come from a file, or are found before the first block (pipeline/bit_costs.py). Until
then the method stands for all its candidates: what one of them refuses is refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import or_
from typing import ClassVar

from q2n.layers.quantized import QuantizedLinear, StorageSpec
from q2n.linalg.required_statistics import RequiredStatistics
from q2n.method import LayerProblem, Method, Work
from q2n.option_types import Width


@dataclass(frozen=True, kw_only=True)
class Allocated(Method):
    """One method at several widths, and the width of each layer."""

    name: ClassVar[str] = "allocated"

    candidates: Mapping[Width, Method]
    """By width; they differ in nothing else."""
    widths: Mapping[str, Width] = field(default_factory=dict)
    """Of each layer, by full name; empty while they are not known."""

    def __post_init__(self) -> None:
        """Its fields are no options: nothing is left to check."""

    def with_widths(self, widths: Mapping[str, Width]) -> "Allocated":
        """The same candidates with the width of each layer."""
        return replace(self, widths=widths)

    @property
    def trials(self) -> dict[Width, Method]:
        """The trial of each candidate."""
        return {width: method.trial for width, method in self.candidates.items()}

    @property
    def _widest(self) -> Method:
        return self.candidates[max(self.candidates)]

    @property
    def title(self) -> str:
        return f"{self._widest.title} in {' or '.join(map(str, sorted(self.candidates)))} bits"

    @property
    def required_statistics(self) -> RequiredStatistics:
        return reduce(or_, (method.required_statistics for method in self.candidates.values()))

    @property
    def reads_gradients(self) -> bool:
        return self._widest.reads_gradients

    @property
    def work(self) -> Work:
        return self._widest.work

    @property
    def storage(self) -> StorageSpec:
        return replace(self._widest.storage, mixed=True)

    def storage_of(self, name: str) -> list[StorageSpec]:
        return [replace(x.storage, mixed=True) for x in self._of(name)]

    def check(self, name: str, shape: tuple[int, int]) -> None:
        for method in self._of(name):
            method.check(name, shape)

    def quantize(self, problem: LayerProblem) -> QuantizedLinear:
        return self.candidates[self.widths[problem.name]].quantize(problem)

    def typical(self, bits: float | None) -> Method:
        """A candidate that stores about so many bits, for forecasts; without them about as many as
        the widths that are known."""
        widths = [width for width in self.widths.values() if isinstance(width, int)]
        aim = bits if bits is not None else sum(widths) / max(len(widths), 1)
        nearest = min(self.candidates, key=lambda x: abs(x - aim) if isinstance(x, int) else 0.0)
        return self.candidates[nearest]

    def _of(self, name: str) -> list[Method]:
        """The methods that may quantize a layer."""
        if name in self.widths:
            return [self.candidates[self.widths[name]]]
        return list(self.candidates.values())
