"""Which format a method's layers can be written in."""

from q2n.errors import InputError
from q2n.formats import FORMATS
from q2n.formats.format import Format
from q2n.layers.quantized import StorageSpec


def formats_for(storage: StorageSpec) -> list[str]:
    """Names of the formats that hold the representation."""
    return [name for name, format in FORMATS.items() if format.codec.holds(storage)]


def choose_format(
    name: str, method: str, storage: StorageSpec, outside: str | None = None
) -> Format:
    """The format of that name, for what `method` stores; what no method quantizes is stored in a
    type of the name `outside`, if one is given.

    Raises:
        InputError: there is no such format, it has no such type, or it cannot hold the
            representation; the message lists those that can.
    """
    if name not in FORMATS:
        raise InputError(f"unknown format {name!r}; there are: {', '.join(FORMATS)}")
    if not FORMATS[name].codec.holds(storage):
        runtime = ", and work to do while the model runs" if storage.runtime else ""
        raise InputError(
            f"{name} cannot hold what {method} stores ({storage.kind} layers{runtime}); "
            f"formats that can: {', '.join(formats_for(storage))}"
        )
    return FORMATS[name] if outside is None else FORMATS[name].storing_outside(outside)
