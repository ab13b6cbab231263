"""`q2n methods`: what there is to choose from."""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING, Any

from q2n.block_types import BLOCK_TYPES
from q2n.config.block_grids import offers_blocks
from q2n.config.options import table
from q2n.config.runtimes import RUNTIMES

if TYPE_CHECKING:
    from rich.table import Table


def add_methods(commands: Any) -> None:
    """Register `q2n methods`."""
    parser = commands.add_parser(
        "methods",
        help="list the methods",
        description="List the quantization methods, what they store and where, and what runs it.",
    )
    parser.set_defaults(run=run)


def run(parsed: Namespace) -> None:
    """Each method; below, what they store (with default options) and who can hold it; last what
    each runtime can run."""
    from q2n.logging import Screen

    methods, stored, holders = _entries("method"), _entries("stored"), {}
    for name, entry in table().methods.items():
        facts = f"{entry.strategy}; bits: {entry.bits}; stores {entry.storage}"
        methods.add_row(f"[bold]{name}", f"{entry.summary}\n[dim]{facts}")
        holders[entry.storage] = ", ".join(entry.formats)
    for storage, text in table().storages.items():
        stored.add_row(f"[bold]{storage}", f"{text}\n[dim]--format {holders[storage]}")
    on_blocks = [name for name in table().methods if offers_blocks(table().owners.get(name, {}))]
    blocks = f"{', '.join(on_blocks)} round to ggml's blocks too, for --format gguf: --grid "
    grids = f"{blocks}{' | '.join(BLOCK_TYPES)}."
    Screen().print(methods, "", stored, "", grids, "", _runtimes())


def _entries(title: str) -> Table:
    """A table of names and what is said of each."""
    from rich.table import Column, Table

    return Table(Column(title, no_wrap=True), "", box=None)


def _runtimes() -> Table:
    """Uniform grids by runtime and format."""
    from rich.table import Column, Table

    titles = ("--runtime", "--format", "bits (on GPUs only)", "groups")
    runtimes = Table(*(Column(title, no_wrap=True) for title in titles), box=None)
    for name, runtime in RUNTIMES.items():
        for loads in runtime.loads:
            bits, gpu_bits = (", ".join(map(str, x)) for x in (loads.bits, loads.gpu_bits))
            groups = "any" if loads.group_sizes is None else ", ".join(map(str, loads.group_sizes))
            on_gpus = f" ({gpu_bits})" if gpu_bits else ""
            only = ", symmetric" if loads.symmetric_only else ""
            runtimes.add_row(f"[bold]{name}", loads.format, f"{bits}{on_gpus}{only}", groups)
    return runtimes
