"""Holds what config.json says of a stored layer against the fields of its representation.

A reader allocates what a description asks for, and computes with whatever the tensors hold; so
neither is believed. The fields of a representation say which tensors and metadata it has:

    codes: UInt8[Tensor, "out in"] = packed("bits")   shape [out, in], uint8, `bits` of the metadata
    scale: Float[Tensor, "out groups"]                shape [out, anything], a floating-point dtype
    bits: CodeBits                                    a whole number from 1 to 8

Equal names of dimensions are equal sizes; how sizes follow from each other and from the metadata is
the representation's to say (`QuantizedLinear.fits`). `require_consistent` looks at a description,
without a tensor, `require_values` at the numbers that can contradict it.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import Field, dataclass, field, fields
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

from jaxtyping import Shaped
from torch import Tensor

from q2n.formats.stored import StoredLayer, StoredTensor
from q2n.layers import REPRESENTATIONS
from q2n.layers.fields import nested_fields, packed_fields
from q2n.layers.quantized import QuantizedLinear
from q2n.linalg.finite import all_finite
from q2n.option_types import ValueKind, refusal, shown

Part = Callable[[str], Shaped[Tensor, "..."]]
"""A tensor of a layer by its name, unpacked."""
_DTYPES = ("float32", "float16", "bfloat16", "uint8", "bool", "int32")
"""Those in which anything is stored."""


class Contradiction(ValueError):
    """What does not fit in the description of a layer, or in its numbers."""


def require_consistent(layer: StoredLayer) -> None:
    """Compare a description with the representation of which it speaks.

    Raises:
        Contradiction: saying what does not fit.
    """
    if not all(1 <= size < 2**31 for size in layer.shape):
        raise Contradiction(f"a weight of shape {layer.shape}")
    if _speaks_for_itself(REPRESENTATIONS[layer.kind]):
        return
    levels = list(_levels(layer))
    known = {name for level in levels for name in level.named()}
    for level in levels:
        known |= {level.prefix + name for name in _require_tensors(level, layer)}
    for level in levels:
        if not level.kind.fits(level.sizes, level.metadata, level.tensors):
            facts = {**level.metadata, **level.sizes}
            raise Contradiction(f"{level.kind.kind} layers are not like that: {facts}")
    unknown = {*layer.tensors, *layer.metadata} - known
    if unknown:
        raise Contradiction(f"{layer.kind} layers have no {shown(min(unknown))}")


def require_values(layer: StoredLayer, part: Part) -> None:
    """Look at the numbers of a layer whose description is consistent, as far as they can
    contradict it.

    Raises:
        Contradiction: a number that is not finite, or an index that points nowhere.
    """
    if _speaks_for_itself(REPRESENTATIONS[layer.kind]):
        return
    for name, stored in layer.tensors.items():
        if stored.dtype.is_floating_point and not all_finite(part(name)):
            raise Contradiction(f"{name} has NaN or Inf")
    for level in _levels(layer):
        problem = level.kind.wrong_values(layer.shape, _Within(part, level.prefix))
        if problem is not None:
            raise Contradiction(problem)


@dataclass(frozen=True)
class _Within:
    """The tensors of a layer by their names within one of its levels."""

    part: Part
    prefix: str

    def __call__(self, name: str) -> Shaped[Tensor, "..."]:
        return self.part(self.prefix + name)


def _speaks_for_itself(kind: type[QuantizedLinear]) -> bool:
    """Whether a representation makes its metadata from something else than its fields."""
    return kind.metadata is not QuantizedLinear.metadata


@dataclass(frozen=True, kw_only=True)
class _Level:
    """A representation, or one within another."""

    kind: type[QuantizedLinear]
    prefix: str
    """Before the names of its tensors and metadata."""
    metadata: dict[str, Any]
    sizes: dict[str, int]
    """Of its dimensions; shared with a level around it whose names it shares."""
    dims: dict[str, str | None]
    """Dimensions of tensors that are not stored quite as the fields are."""
    tensors: set[str] = field(default_factory=set)
    """Names of those that are there."""

    def named(self) -> set[str]:
        """Names of the metadata."""
        return {self.prefix + name for name in (*self.metadata, *nested_fields(self.kind))}


def _levels(layer: StoredLayer) -> Iterator[_Level]:
    """The representation of a layer, and those within it."""
    sizes = dict(zip(("out", "in"), layer.shape, strict=True))
    waiting = [_level(REPRESENTATIONS[layer.kind], "", layer, dict(sizes), {})]
    while waiting:
        level = waiting.pop()
        yield level
        for name, within in nested_fields(level.kind).items():
            kind: Any = within.representation or _kind_within(level.prefix + name, layer)
            prefix, shared = level.prefix + within.prefix, not within.prefix
            changed = within.inside(level.dims)
            own_sizes = level.sizes if shared else dict(sizes)
            waiting.append(_level(kind, prefix, layer, own_sizes, changed))


def _kind_within(name: str, layer: StoredLayer) -> type[QuantizedLinear]:
    kind = layer.metadata.get(name)
    if not isinstance(kind, str) or kind not in REPRESENTATIONS:
        raise Contradiction(f"{name} is {shown(kind)}")
    return REPRESENTATIONS[kind]


def _level(
    kind: type[QuantizedLinear],
    prefix: str,
    layer: StoredLayer,
    sizes: dict[str, int],
    changed: Mapping[str, str | None],
) -> _Level:
    metadata = {}
    for name, takes in _kinds(kind).items():
        metadata[name] = layer.metadata.get(prefix + name)
        message = refusal(prefix + name, metadata[name], takes)
        if message is not None:
            raise Contradiction(message)
    dims = {**kind.stored_dims(metadata), **changed}
    return _Level(kind=kind, prefix=prefix, metadata=metadata, sizes=sizes, dims=dims)


def _require_tensors(level: _Level, layer: StoredLayer) -> set[str]:
    """Check the tensors of one representation; gives their names."""
    packed = packed_fields(level.kind)
    for item in fields(level.kind):
        annotation, name = _annotation(item), level.prefix + item.name
        dims = level.dims.get(item.name, getattr(annotation, "dim_str", None))
        stored = layer.tensors.get(name)
        if dims is None or (stored is None and _may_be_missing(item)):
            continue
        if stored is None:
            raise Contradiction(f"{name} is not described")
        level.tensors.add(item.name)
        _require_tensor(name, stored, dims, annotation, level.sizes)
        bits = packed.get(item.name)
        bits = level.metadata[bits] if isinstance(bits, str) else bits
        if stored.bits != bits:
            raise Contradiction(f"{name} has {stored.bits} bits, not {bits}")
    return level.tensors


def _require_tensor(
    name: str, stored: StoredTensor, dims: str, annotation: Any, sizes: dict[str, int]
) -> None:
    """Compare shape and dtype with the annotation of the field; notes the sizes of dimensions."""
    names, shape = dims.split(), stored.shape
    if len(names) != len(shape):
        raise Contradiction(f"{name} has shape {shape}, not [{dims}]")
    for dim, size in zip(names, shape, strict=True):
        expected = int(dim) if dim.isdigit() else sizes.setdefault(dim, size)
        if size != expected:
            raise Contradiction(f"{name} has shape {shape}, and {dim} is {expected}")
    dtype = str(stored.dtype).removeprefix("torch.")
    if dtype not in _DTYPES or dtype not in annotation.dtypes:
        raise Contradiction(f"{name} is of {dtype}")


def _kinds(kind: type[QuantizedLinear]) -> dict[str, ValueKind]:
    """The metadata of a representation: its fields that are neither tensors nor layers."""
    others = {"record", *nested_fields(kind)}
    return {
        item.name: ValueKind.of(item.type)
        for item in fields(kind)
        if item.name not in others and not hasattr(_annotation(item), "dim_str")
    }


def _annotation(item: Field) -> Any:
    """The type of a field, without None."""
    if get_origin(item.type) not in (Union, UnionType):
        return item.type
    return next(part for part in get_args(item.type) if part is not NoneType)


def _may_be_missing(item: Field) -> bool:
    return item.default is None
