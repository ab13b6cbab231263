"""How the fields of a representation are stored: each field says it once.

    codes: UInt8[Tensor, "out in"] = packed("bits")     whole numbers of `bits` bits each
    scale: Float[Tensor, "out groups"]                  a tensor in its own dtype
    mean: Float[Tensor, "out groups"] | None = None     the same, where there may be none
    bits: int                                           a JSON value: metadata
    inner: QuantizedLinear = nested()                   another layer, its names prefixed

`QuantizedLinear` derives from these its shape, tensors, widths, metadata, the inverse of the last
two, and the number of stored bits. A field that is None is not stored at all.
"""

from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Annotated, Any

from q2n.option_types import Range

CodeBits = Annotated[int, Range(low=1, high=8)]
"""Bits of a code."""
_BITS, _NESTED = "bits", "nested"


def packed(bits: int | str, *, default: Any = MISSING) -> Any:
    """A tensor (uint8 or bool) of whole numbers below 2^bits, which a format may store in as many
    bits each.

    Args:
        bits: 1 to 8, or the name of the field that holds this number.
        default: as in `dataclasses.field`.
    """
    return field(default=default, metadata={_BITS: bits})


@dataclass(frozen=True)
class Nested:
    """How a layer within a layer is stored."""

    representation: type | None
    """The only one that may lie there; None for any, whose kind is then part of the metadata."""
    prefix: str
    """Of the names of its tensors and metadata."""

    def outside(self, entries: Mapping[str, Any]) -> dict[str, Any]:
        """Entries of the layer within by their names outside."""
        return {f"{self.prefix}{name}": value for name, value in entries.items()}

    def inside(self, entries: Mapping[str, Any]) -> dict[str, Any]:
        """Inverse of `outside`; it drops what has another prefix."""
        return {
            name.removeprefix(self.prefix): value
            for name, value in entries.items()
            if name.startswith(self.prefix)
        }


def nested(representation: type | None = None, *, prefix: str = "inner_") -> Any:
    """A layer within the layer (see `Nested`). With the prefix "" its names stand among those of
    the layer around it, which must have no field of the same name."""
    return field(metadata={_NESTED: Nested(representation, prefix)})


def packed_fields(representation: type) -> dict[str, int | str]:
    """The packed fields by name, each with its bits or the name of the field that holds them."""
    return {f.name: f.metadata[_BITS] for f in fields(representation) if _BITS in f.metadata}


def nested_fields(representation: type) -> dict[str, Nested]:
    """The layers within by name of the field."""
    return {f.name: f.metadata[_NESTED] for f in fields(representation) if _NESTED in f.metadata}


def shape_field(representation: type) -> str:
    """The field whose shape is that of the weight: a tensor "out in", or a layer.

    Raises:
        TypeError: there is none.
    """
    for candidate in fields(representation):
        if _has_weight_shape(candidate):
            return candidate.name
    raise TypeError(
        f"{representation.__name__} has no field of shape 'out in' and no nested layer; define "
        "its `shape`"
    )


def _has_weight_shape(candidate: Field) -> bool:
    return _NESTED in candidate.metadata or getattr(candidate.type, "dim_str", "") == "out in"
