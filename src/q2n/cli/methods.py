"""`q2n methods`: what there is to choose from."""

from argparse import Namespace
from typing import Any

from q2n.config.options import table


def add_methods(commands: Any) -> None:
    """Register `q2n methods`."""
    parser = commands.add_parser(
        "methods",
        help="list the methods",
        description="List the quantization methods, what they store and where.",
    )
    parser.set_defaults(run=run)


def run(parsed: Namespace) -> None:
    """One line per method; below, for what they store (with default options), who can hold it."""
    from rich.table import Table

    from q2n.logging import Screen

    methods = Table("method", "bits", "stores", "", box=None)
    formats = Table("stored", "formats that can hold it", "", box=None)
    holders = {}
    for name, entry in table().methods.items():
        methods.add_row(f"[bold]{name}", entry.bits, entry.storage, entry.summary)
        holders[entry.storage] = ", ".join(entry.formats)
    for storage, text in table().storages.items():
        formats.add_row(storage, holders[storage], text)
    Screen().print(methods, "", formats)
