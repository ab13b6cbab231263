"""`q2n methods`: what there is to choose from."""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING, Any

from q2n.block_types import BLOCK_TYPES
from q2n.config.block_grids import offers_blocks
from q2n.config.options import table
from q2n.config.runtimes import ALL_BITS, RUNTIMES, Loads

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
    """One line per method; below, for what they store (with default options), who can hold it; last
    what each runtime can run."""
    from rich.table import Table

    from q2n.logging import Screen

    methods = Table("method", "class", "bits", "stores", "", box=None)
    formats = Table("stored", "formats that can hold it", "", box=None)
    holders = {}
    for name, entry in table().methods.items():
        methods.add_row(f"[bold]{name}", entry.strategy, entry.bits, entry.storage, entry.summary)
        holders[entry.storage] = ", ".join(entry.formats)
    on_blocks = [name for name in table().methods if offers_blocks(table().owners.get(name, {}))]
    for storage, text in table().storages.items():
        formats.add_row(storage, holders[storage], text)
    blocks = f"{', '.join(on_blocks)} round to ggml's blocks too, for --format gguf: --grid "
    grids = f"{blocks}{' | '.join(BLOCK_TYPES)}."
    Screen().print(methods, "", formats, "", grids, "", _runtimes())


def _runtimes() -> Table:
    """Uniform grids by runtime, format and width."""
    from rich.table import Column, Table

    names = [Column(name, no_wrap=True) for name in ("--runtime", "--format")]
    runtimes = Table(*names, *map(str, ALL_BITS), "groups", "", box=None)
    for name, runtime in RUNTIMES.items():
        for loads in runtime.loads:
            sizes = "any" if loads.group_sizes is None else "/".join(map(str, loads.group_sizes))
            widths = [_runs(loads, bits) for bits in ALL_BITS]
            only = "symmetric" if loads.symmetric_only else ""
            runtimes.add_row(f"[bold]{name}", loads.format, *widths, sizes, only)
    return runtimes


def _runs(loads: Loads, bits: int) -> str:
    return "yes" if bits in loads.bits else "GPU" if bits in loads.gpu_bits else "no"
