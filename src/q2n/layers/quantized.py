"""What every method returns: one linear layer in the form in which it is stored.

A `QuantizedLinear` is immutable. It knows how to become a dense weight, how to
absorb one factor a row without a new tensor (this makes the null-space step a
plug-in), what it costs, and how to travel through a safetensors file.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol, Self, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from q2n.errors import InputError


@runtime_checkable
class Trainable(Protocol):
    """A quantized linear in a form that gradient steps can improve."""

    @property
    def scale_change(self) -> Tensor:
        """Relative changes of the stored scales, or of the values that play their part: a
        parameter that starts at 0."""

    @property
    def code_change(self) -> Tensor | None:
        """Changes of the codes before they are rounded: a parameter that starts at 0, or None."""

    def weight(self, dtype: torch.dtype) -> Float[Tensor, "out in"]:
        """The dense weight, differentiable in the parameters."""

    def quantized(self) -> "QuantizedLinear":
        """The layer with what was learned, as it is stored."""


@dataclass(frozen=True, kw_only=True)
class StorageSpec:
    """What is known of a method's layers before there are any, from its options alone. A
    representation that not every format can hold in every shape has a subclass that says more."""

    kind: str
    """The representation, by its name in `REPRESENTATIONS`."""
    runtime: bool = False
    """Whether the model must do more than multiply while it runs (rotate or quantize its
    activations): lost, without a word, by a format that stores weights alone."""


@dataclass(frozen=True, kw_only=True, eq=False)
class QuantizedLinear(ABC):
    """A quantized weight of shape [out, in], its columns in the layer's own order.

    The first line of a subclass's docstring says what it stores (`q2n methods` prints it).
    """

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
        """The layer whose dequantized row i is alpha_i times this one's outside the fixed
        columns, up to the rounding of the stored scales. Codes stay as they are."""

    @property
    def fixed_columns(self) -> Int[Tensor, " fixed"]:
        """Columns that no factor multiplies, such as outliers beside a grid: none unless a
        representation says otherwise."""
        return torch.empty(0, dtype=torch.int64)

    def scaled_part(self) -> Float[Tensor, "out in"]:
        """What `scale_rows` multiplies: the dense weight, with zeros in the fixed columns."""
        return without_columns(self.dequantize(), self.fixed_columns)

    @property
    def scale_group(self) -> int:
        """Neighbouring columns of a row that share a stored scale: all of them unless a
        representation says otherwise."""
        return self.shape[1]

    def scale_groups(self, alpha: Float[Tensor, "out groups"]) -> Self:
        """As `scale_rows`, with a factor for every `scale_group` columns of a row."""
        if alpha.shape[1] != 1:
            raise InputError(f"{self.kind} layers have one factor a row, got {tuple(alpha.shape)}")
        return self.scale_rows(alpha.squeeze(1))

    def trainable(self, *, rounding: bool) -> Trainable:
        """The layer for gradient steps on its scales and, with `rounding`, its codes where they
        lie on a uniform grid.

        Raises:
            InputError: this representation has no such form.
        """
        raise InputError(f"{self.kind} layers cannot be refitted by gradient steps")

    @property
    @abstractmethod
    def stored_bits(self) -> int:
        """Bits of everything stored: codes, scales, zero points, and what a method adds."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """The tensors that, with `metadata`, rebuild this object. Their names are Python
        identifiers other than "bias"; a layer that holds another gives that one's a prefix."""

    @property
    def widths(self) -> Mapping[str, int]:
        """Bits, 1 to 8, of an entry of those `tensors` (uint8 or bool) that hold small whole
        numbers, which a format may store as tightly; the others count with their dtype."""
        return {}

    @abstractmethod
    def metadata(self) -> dict[str, Any]:
        """The JSON values that, with `tensors`, rebuild this object. A layer that holds another
        has that one's metadata under a name of its own."""

    @classmethod
    @abstractmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> Self:
        """Inverse of `tensors` and `metadata`. The record is not restored."""

    def to(self, device: torch.device) -> Self:
        """The same layer, its tensors on the device."""
        moved = {name: tensor.to(device) for name, tensor in self.tensors().items()}
        return type(self).from_tensors(moved, self.metadata()).with_record(**self.record)

    @property
    def bits_per_weight(self) -> float:
        """Stored bits over the number of weights."""
        rows, columns = self.shape
        return self.stored_bits / (rows * columns)

    def with_record(self, **found: Any) -> Self:
        """The same layer with more entries in its record."""
        return replace(self, record={**self.record, **found})


def without_columns(
    values: Float[Tensor, "out in"], columns: Int[Tensor, " gone"]
) -> Float[Tensor, "out in"]:
    """`values` with zeros in some columns; the very tensor if there are none."""
    return values.index_fill(1, columns.to(values.device), 0) if len(columns) else values
