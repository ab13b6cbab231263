"""`q2n methods`: what there is to choose from."""

from collections.abc import Callable
from typing import Any

from jsonargparse import Namespace
from rich.console import Console
from rich.table import Table

from q2n.cli.flags import new_parser
from q2n.config import summary
from q2n.formats.choice import formats_for
from q2n.grids import REPRESENTATIONS
from q2n.grids.quantized import Form
from q2n.methods import METHODS


def add_methods(commands: Any) -> Callable[[Namespace], None]:
    commands.add_subcommand(
        "methods",
        new_parser("methods", "List the quantization methods, what they store and where."),
        help="list the methods",
    )
    return run


def run(parsed: Namespace) -> None:
    """One line a method; below, for what they store (with default options), who can hold it."""
    methods = Table("method", "bits", "stores", "", box=None)
    formats = Table("stored", "formats that can hold it", "", box=None)
    forms: dict[str, Form] = {}
    for name, method in METHODS.items():
        form = method().form
        stored = f"{form.kind}, online" if form.online else form.kind
        forms.setdefault(stored, form)
        methods.add_row(f"[bold]{name}", method.bits_offered, stored, summary(method))
    for stored, form in forms.items():
        formats.add_row(stored, ", ".join(formats_for(form)), _stored(form))
    Console().print(methods, "", formats)


def _stored(form: Form) -> str:
    """What a representation stores, in words."""
    besides = " Rotations and rounding while the model runs." if form.online else ""
    return summary(REPRESENTATIONS[form.kind]) + besides
