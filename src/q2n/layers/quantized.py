"""What every method returns: one linear layer in the form in which it is stored.

A `QuantizedLinear` is immutable. It knows its dense weight, absorbs a factor per row without a new
tensor (this makes the null-space step a plug-in), counts its bits, and travels through a
safetensors file.

A new representation is a frozen dataclass in a file of its own: its fields (fields.py says how
each is stored), `dequantize` and `scale_rows`; where they apply, `scale_group` with `scale_groups`,
`fixed_columns`, `part` and `trainable`, `fits` and `wrong_values`. It is entered in the table of
`layers/__init__.py`. If the stored tensors are not quite the fields, it overrides `tensors`,
`from_tensors` and `stored_dims` together.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Protocol, Self, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from q2n.errors import InputError
from q2n.layers.fields import Nested, nested_fields, packed_fields, shape_field


@runtime_checkable
class Trainable(Protocol):
    """A quantized linear in a form that gradient steps can improve."""

    @property
    def scale_change(self) -> Float[Tensor, "..."]:
        """Relative changes of the stored scales, or of the values that play their part: a
        parameter that starts at 0."""

    @property
    def code_change(self) -> Float[Tensor, "out in"] | None:
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
    runtime: str = ""
    """The flag of what the model must do beside multiplying while it runs (rotate, round its
    cache). A format that stores only weights would lose this silently."""
    mixed: bool = False
    """Whether layers differ in width."""


@dataclass(frozen=True, kw_only=True, eq=False)
class QuantizedLinear(ABC):
    """A quantized weight of shape [out, in], its columns in the layer's own order.

    The first line of a subclass's docstring says what it stores (`q2n methods` prints it).
    """

    kind: ClassVar[str]
    """Name under which the representation is stored, unique among representations."""
    representations: ClassVar[Mapping[str, type["QuantizedLinear"]]] = {}
    """The table of `layers/__init__.py`: where a layer that holds another finds its class."""

    record: Mapping[str, Any] = field(default_factory=dict)
    """What the method noted on the way (damping used, rank kept, ...): JSON values. It is no part
    of `tensors` and `metadata`."""

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
        """Number of neighbouring columns that share a stored scale: all columns unless a
        representation says otherwise."""
        return self.shape[1]

    def scale_groups(self, alpha: Float[Tensor, "out groups"]) -> Self:
        """Like `scale_rows`, with a factor per row and group of `scale_group` columns.

        Raises:
            InputError: this representation has one factor per row.
        """
        if alpha.shape[1] != 1:
            raise InputError(
                f"{self.kind} layers have one factor per row, got factors of shape "
                f"{tuple(alpha.shape)}; use --scales-per row"
            )
        return self.scale_rows(alpha.squeeze(1))

    def part(self, rows: slice, columns: slice) -> Self:
        """Some neighbouring rows and columns, so that several devices can share a layer. Both
        slices have a start and a stop within the layer.

        Raises:
            InputError: this representation does not come apart there.
        """
        raise InputError(f"{self.kind} layers cannot be divided, neither by rows nor by columns")

    def with_rows(self, rows: Bool[Tensor, " out"], other: Self) -> Self:
        """This layer, with some rows of another one of the same shape and metadata.

        Raises:
            InputError: rows of this representation share more than metadata.
        """
        taken: dict[str, Any] = {}
        for name, value in _values(self):
            within = isinstance(value, QuantizedLinear)  # a basis may mix its rows
            if within or (isinstance(value, Tensor) and len(value) != self.shape[0]):
                raise InputError(f"rows of {self.kind} layers are stored together")
            if not isinstance(value, Tensor):
                continue
            there = rows.view(-1, *[1] * (value.ndim - 1))
            taken[name] = torch.where(there, getattr(other, name), value)
        return replace(self, **taken)

    def trainable(self, *, rounding: bool) -> Trainable:
        """The layer for gradient steps on its scales and, with `rounding`, on its codes where they
        lie on a uniform grid.

        Raises:
            InputError: this representation has no such form.
        """
        raise InputError(
            f"{self.kind} layers cannot be refitted by gradient steps; use --refit off"
        )

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        rows, columns = getattr(self, shape_field(type(self))).shape
        return rows, columns

    def tensors(self) -> dict[str, Shaped[Tensor, "..."]]:
        """The tensors that, with `metadata`, rebuild this object. Their names are Python
        identifiers other than "bias"."""
        stored = {name: value for name, value in _values(self) if isinstance(value, Tensor)}
        for _, within, layer in _nested(self):
            stored |= within.outside(layer.tensors())
        return stored

    @property
    def widths(self) -> Mapping[str, int]:
        """Bits, 1 to 8, per entry of those `tensors` (uint8 or bool) that hold small whole
        numbers, which a format may pack; the entries of the others count with their dtype."""
        widths: dict[str, int] = {}
        for name, bits in packed_fields(type(self)).items():
            if getattr(self, name) is not None:
                widths[name] = bits if isinstance(bits, int) else getattr(self, bits)
        for _, within, layer in _nested(self):
            widths |= within.outside(layer.widths)
        return widths

    def metadata(self) -> dict[str, Any]:
        """The JSON values that, with `tensors`, rebuild this object."""
        other = (Tensor, QuantizedLinear, type(None))
        values = {name: value for name, value in _values(self) if not isinstance(value, other)}
        for name, within, layer in _nested(self):
            own = {name: layer.kind} if within.representation is None else {}
            values |= own | within.outside(layer.metadata())
        return values

    @classmethod
    def from_tensors(
        cls, tensors: Mapping[str, Shaped[Tensor, "..."]], metadata: Mapping[str, Any]
    ) -> Self:
        """Inverse of `tensors` and `metadata`. The record is not restored."""
        stored = {**metadata, **tensors}
        values = {f.name: stored[f.name] for f in fields(cls) if f.name in stored}
        for name, within in nested_fields(cls).items():
            layer: Any = within.representation or cls.representations[metadata[name]]
            values[name] = layer.from_tensors(within.inside(tensors), within.inside(metadata))
        return cls(**values)

    @classmethod
    def stored_dims(cls, metadata: Mapping[str, Any]) -> Mapping[str, str | None]:
        """Dimensions ("out kept") of the stored tensors that are not quite the field of their name;
        None for one that is not stored."""
        return {}

    @classmethod
    def fits(cls, sizes: Mapping[str, int], metadata: Mapping[str, Any], tensors: Set[str]) -> bool:
        """Whether a description can be of such a layer: the sizes of its dimensions by their names
        ("out", "in", those of the fields), its metadata, the names of its tensors."""
        return True

    @classmethod
    def wrong_values(
        cls, shape: tuple[int, int], part: Callable[[str], Shaped[Tensor, "..."]]
    ) -> str | None:
        """What is wrong with the numbers of a stored layer that `fits`, such as an index that
        points nowhere; `part` gives a stored tensor by its name. None: nothing."""
        return None

    @property
    def stored_bits(self) -> int:
        """Bits of everything stored: codes, scales, zero points, and what a method adds."""
        widths = self.widths
        entries = (
            widths.get(name, 8 * tensor.element_size()) * tensor.numel()
            for name, tensor in self.tensors().items()
        )
        return sum(entries) + self.metadata_bits

    @property
    def metadata_bits(self) -> int:
        """Bits of metadata that belong to this layer alone, such as a seed; bits, group size and
        the like, the same in many layers, are not counted."""
        return sum(layer.metadata_bits for _, _, layer in _nested(self))

    @property
    def bits_per_weight(self) -> float:
        """Stored bits over the number of weights."""
        rows, columns = self.shape
        return self.stored_bits / (rows * columns)

    def to(self, device: torch.device) -> Self:
        """The same layer, its tensors on the device."""
        movable = (Tensor, QuantizedLinear)
        moved: dict[str, Any] = {
            name: value.to(device) for name, value in _values(self) if isinstance(value, movable)
        }
        return replace(self, **moved)

    def with_record(self, **entries: Any) -> Self:
        """The same layer with more entries in its record."""
        return replace(self, record={**self.record, **entries})


def without_columns(
    values: Float[Tensor, "out in"], columns: Int[Tensor, " gone"]
) -> Float[Tensor, "out in"]:
    """`values` with zeros in some columns; the very tensor if there are none."""
    return values.index_fill(1, columns.to(values.device), 0) if len(columns) else values


def _values(layer: QuantizedLinear) -> Iterator[tuple[str, Any]]:
    """Every field but the record, with its value."""
    return ((f.name, getattr(layer, f.name)) for f in fields(layer) if f.name != "record")


def _nested(layer: QuantizedLinear) -> Iterator[tuple[str, Nested, QuantizedLinear]]:
    """Every layer within: its field, how it is stored, and the layer."""
    within = nested_fields(type(layer))
    return ((name, how, getattr(layer, name)) for name, how in within.items())
