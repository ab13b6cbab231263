"""`q2n inspect DIR`: what was quantized, how, and what it did to each layer."""

from argparse import Namespace
from pathlib import Path
from typing import Any


def add_inspect(commands: Any) -> None:
    """Register `q2n inspect`."""
    parser = commands.add_parser(
        "inspect",
        help="show what was quantized, and how",
        usage="q2n inspect DIR [--json] [--plot FILE]",
        description="Show the record of a finished or interrupted quantization.",
    )
    parser.add_argument("directory", help="Checkpoint folder, or the --output of a run.")
    parser.add_argument("--json", action="store_true", help="Print the record as JSON.")
    parser.add_argument("--plot", help="Draw errors and alpha by layer (.png, .svg).")
    parser.set_defaults(run=run)


def run(parsed: Namespace) -> None:
    """Print settings and one row per layer."""
    import json

    from q2n.api import inspect

    if parsed.plot:
        from q2n.report.figures import require_picture

        require_picture(Path(parsed.plot))
    record = inspect(parsed.directory)
    if parsed.plot:
        from q2n.report.figures import plot_layers
        from q2n.report.record import RunRecord

        plot_layers(RunRecord.from_json(record), Path(parsed.plot))
    if parsed.json:
        print(json.dumps(record))
    else:
        _print(record)


def _print(values: dict[str, Any]) -> None:
    from q2n.logging import Screen
    from q2n.report.record import RunRecord
    from q2n.report.tables import bits_line, layer_table, settings_table

    record, console = RunRecord.from_json(values), Screen()
    if (blocks := values.get("finished_blocks")) is not None:
        console.print(f"[yellow]unfinished: {blocks} blocks are done; go on with --resume")
    console.print(settings_table(record))
    console.print(layer_table(record))
    console.print(f"{bits_line(values)}; all stored parts counted")
    for note in record.notes:
        console.print(f"note: {note}", markup=False)
    for name in record.ignored:
        console.print(f"left in full precision, as asked for: {name}", markup=False)
