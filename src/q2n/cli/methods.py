"""`q2n methods`: what there is to choose from."""

from collections.abc import Callable
from typing import Any

from jsonargparse import Namespace
from rich.console import Console
from rich.table import Table

from q2n.cli.flags import new_parser
from q2n.config import summary
from q2n.formats.choice import formats_for
from q2n.layers import REPRESENTATIONS
from q2n.layers.quantized import StorageSpec
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
    forms: dict[str, StorageSpec] = {}
    for name, method in METHODS.items():
        storage = method().storage
        stored = f"{storage.kind}, runtime" if storage.runtime else storage.kind
        forms.setdefault(stored, storage)
        methods.add_row(f"[bold]{name}", method.bits_offered, stored, summary(method))
    for stored, storage in forms.items():
        formats.add_row(stored, ", ".join(formats_for(storage)), _stored(storage))
    Console().print(methods, "", formats)


def _stored(storage: StorageSpec) -> str:
    """What a representation stores, in words."""
    besides = " Rotations and rounding while the model runs." if storage.runtime else ""
    return summary(REPRESENTATIONS[storage.kind]) + besides
