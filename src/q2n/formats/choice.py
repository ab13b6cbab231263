"""Which format a method's layers can be written in."""

from q2n.errors import InputError
from q2n.formats import FORMATS
from q2n.formats.format import Format
from q2n.grids.quantized import Form


def formats_for(form: Form) -> list[str]:
    """Names of the formats that hold the representation."""
    return [name for name, format in FORMATS.items() if format.holds(form)]


def choose_format(name: str, method: str, form: Form) -> Format:
    """The format of that name, for what `method` stores.

    Raises:
        InputError: there is no such format, or it cannot hold the representation; the message
            lists those that can.
    """
    if name not in FORMATS:
        raise InputError(f"unknown format {name!r}; there are: {', '.join(FORMATS)}")
    if not FORMATS[name].holds(form):
        online = ", and work to do while the model runs" if form.online else ""
        raise InputError(
            f"{name} cannot hold what {method} stores ({form.kind} layers{online}); "
            f"formats that can: {', '.join(formats_for(form))}"
        )
    return FORMATS[name]
