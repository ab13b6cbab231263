"""`q2n methods`: what there is to choose from."""

from collections.abc import Callable
from typing import Any

from jsonargparse import Namespace
from rich.console import Console
from rich.table import Table

from q2n.cli.flags import new_parser
from q2n.methods import METHODS


def add_methods(commands: Any) -> Callable[[Namespace], None]:
    commands.add_subcommand(
        "methods", new_parser("methods", "List the quantization methods."), help="list the methods"
    )
    return run


def run(parsed: Namespace) -> None:
    """One line a method: its docstring's first line."""
    table = Table(show_header=False, box=None)
    for name, method in METHODS.items():
        table.add_row(f"[bold]{name}", (method.__doc__ or "").strip().splitlines()[0])
    Console().print(table)
