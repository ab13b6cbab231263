"""`q2n inspect DIR`: what was quantized, how, and what it did to each layer."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from rich.console import Console

from q2n.api import inspect
from q2n.cli.flags import new_parser
from q2n.report.figures import plot_layers
from q2n.report.record import RunRecord
from q2n.report.tables import layer_table, settings_table


def add_inspect(commands: Any) -> Callable[[Namespace], None]:
    parser = new_parser(
        "inspect DIR [--json] [--plot FILE]",
        "Show the record of a finished or interrupted quantization.",
    )
    parser.add_argument("directory", help="Checkpoint folder, or the --output of a run.")
    parser.add_argument("--json", action="store_true", help="Print the record as JSON.")
    parser.add_argument("--plot", type=str, help="Draw errors and alpha by layer (.png, .svg).")
    commands.add_subcommand("inspect", parser, help="show what was quantized, and how")
    return run


def run(parsed: Namespace) -> None:
    """Print settings and one row per layer."""
    inspected = inspect(parsed.directory)
    record = RunRecord.from_json(inspected)
    if parsed.plot:
        plot_layers(record, Path(parsed.plot))
    if parsed.json:
        print(json.dumps(inspected))
        return
    console = Console()
    if (blocks := inspected.get("finished_blocks")) is not None:
        console.print(f"[yellow]unfinished: {blocks} blocks are done; go on with --resume")
    console.print(settings_table(record))
    console.print(layer_table(record))
    console.print(
        f"{record.bits_per_weight:.3f} bits per quantized weight, all stored parts counted"
    )
    for name in record.left_in_full_precision:
        console.print(f"left in full precision, never called: {name}")
