"""`q2n methods`: what there is to choose from."""

from collections.abc import Callable
from typing import Any

from jsonargparse import Namespace
from rich.console import Console
from rich.table import Table

from q2n.cli.flags import new_parser
from q2n.formats.choice import formats_for
from q2n.grids import REPRESENTATIONS
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
    for name, method in METHODS.items():
        methods.add_row(f"[bold]{name}", method.bits_offered, method().form.kind, _summary(method))
    for form in {method().form.kind: method().form for method in METHODS.values()}.values():
        formats.add_row(
            form.kind, ", ".join(formats_for(form)), _summary(REPRESENTATIONS[form.kind])
        )
    Console().print(methods, "", formats)


def _summary(documented: type) -> str:
    """The first line of its docstring."""
    return (documented.__doc__ or "").strip().splitlines()[0]
