"""Which format a method's layers can be written in."""

from collections.abc import Sequence

from q2n.errors import InputError
from q2n.formats import FORMATS
from q2n.formats.format import Format
from q2n.grids.per_token import TokenGrid
from q2n.layers.quantized import StorageSpec


def formats_for(storage: StorageSpec) -> list[str]:
    """Names of the formats that hold the representation."""
    return [name for name, format in FORMATS.items() if format.codec.holds(storage)]


def first_format(method: str, storage: StorageSpec, among: Sequence[str]) -> str:
    """The first of the named formats that holds what `method` stores.

    Raises:
        InputError: none does; the message says which would.
    """
    for name in among:
        if FORMATS[name].codec.holds(storage):
            return name
    raise InputError(_cannot_hold(", ".join(among), method, storage))


def choose_format(
    name: str,
    method: str,
    storage: StorageSpec,
    *,
    outside: str | None = None,
    outside_bits: int | None = None,
    activations: TokenGrid | None = None,
) -> Format:
    """The format of that name, for what `method` stores. Embeddings and head are stored in a type
    of the name `outside`, or in `outside_bits`, if one is given. With `activations` the quantized
    linears round their inputs.

    Raises:
        InputError: there is no such format, it has no such type, or it cannot hold the
            representation, the bits or the rounding; the message says what can.
    """
    if name not in FORMATS:
        raise InputError(f"unknown format {name!r}; there are: {', '.join(FORMATS)}")
    if not FORMATS[name].codec.holds(storage):
        raise InputError(_cannot_hold(name, method, storage))
    format = FORMATS[name]
    if activations is not None:
        format = format.rounding_inputs(storage, activations)
    if outside is not None:
        return format.storing_outside(outside)
    if outside_bits is None:
        return format
    if outside_bits not in format.container.outside_bits:
        able = [
            x for x in formats_for(storage) if outside_bits in FORMATS[x].container.outside_bits
        ]
        raise InputError(
            f"{name} holds embeddings and head in 16 bits or more; of the formats that hold what "
            f"{method} stores, these hold them in {outside_bits} bits: {', '.join(able) or 'none'}"
        )
    return format.with_outside_bits(outside_bits)


def _cannot_hold(formats: str, method: str, storage: StorageSpec) -> str:
    runtime = f", and work to do while the model runs: {storage.runtime}"
    return (
        f"{formats} cannot hold what {method} stores ({storage.kind} layers"
        f"{runtime if storage.runtime else ''}); "
        f"formats that can: {', '.join(formats_for(storage))}"
    )
