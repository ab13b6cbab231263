"""What every method returns: one linear layer in the form in which it is stored.

A `QuantizedLinear` is immutable. It knows how to become a dense weight, how to
absorb one factor a row without a new tensor (this makes the null-space step a
plug-in), what it costs, and how to travel through a safetensors file.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class QuantizedLinear(ABC):
    """A quantized weight of shape [out, in], its columns in the layer's own order."""

    kind: ClassVar[str]
    """Name under which the representation is stored, unique among representations."""

    record: Mapping[str, Any] = field(default_factory=dict)
    """What the method found out on the way (damping used, kept rank, ...): JSON values."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """(out, in)."""

    @abstractmethod
    def dequantize(self) -> Float[Tensor, "out in"]:
        """The dense weight in float32."""

    @abstractmethod
    def scale_rows(self, alpha: Float[Tensor, " out"]) -> Self:
        """The layer whose dequantized row i is alpha_i times this one's, up to the
        rounding of the stored scales. Codes stay as they are."""

    @property
    @abstractmethod
    def stored_bits(self) -> int:
        """Bits of everything stored: codes, scales, zero points, and what a method adds."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """The tensors that, with `metadata`, rebuild this object."""

    @abstractmethod
    def metadata(self) -> dict[str, int | float | bool | str]:
        """The plain values that, with `tensors`, rebuild this object."""

    @classmethod
    @abstractmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> Self:
        """Inverse of `tensors` and `metadata`. The record is not restored."""

    @property
    def bits_per_weight(self) -> float:
        """Stored bits over the number of weights."""
        rows, columns = self.shape
        return self.stored_bits / (rows * columns)

    def with_record(self, **found: Any) -> Self:
        """The same layer with more entries in its record."""
        return replace(self, record={**self.record, **found})
