"""`q2n plan MODEL [settings]`: what a quantization will need, before anything is read."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from q2n.cli.flags import add_settings, settings_of
from q2n.config.reading import read_settings
from q2n.errors import InputError

if TYPE_CHECKING:
    from rich.table import Table

    from q2n.planning.forecast import Forecast

NOT_SETTINGS = ("command", "run", "checkpoint", "config", "rates", "ranks", "json")
"""What the parser knows of a call besides settings."""


def add_plan(commands: Any) -> None:
    """Register `q2n plan`."""
    parser = commands.add_parser(
        "plan",
        help="say what memory, disk and time a quantization needs",
        usage="q2n plan MODEL [options of quantize] [--rates FILE] [--ranks N] [--json]",
        description="Memory, disk and time of a quantization by stage, from config.json and the "
        "settings alone: no weight is read. What time is made of: docs/scaling.md.",
    )
    parser.add_argument(
        "checkpoint",
        nargs="?",
        metavar="MODEL",
        help="Folder with a config.json, packaged model, or hub name: no weight is fetched.",
    )
    parser.add_argument("--config", help="YAML file of settings; flags beside it win.")
    parser.add_argument(
        "--rates", metavar="FILE", help="JSON file of stated rates; others are measured here."
    )
    parser.add_argument(
        "--ranks", type=int, default=1, metavar="N", help="Devices that share the work."
    )
    parser.add_argument("--json", action="store_true", help="Print one JSON object.")
    add_settings(parser)
    parser.set_defaults(run=run)


def run(parsed: Namespace) -> None:
    """Print what the run needs."""
    if parsed.ranks < 1:
        raise InputError(f"--ranks is {parsed.ranks}; it takes a whole number at least 1")
    settings = settings_of(parsed, NOT_SETTINGS)
    if not settings.get("model"):
        raise InputError("no model set; usage: q2n plan MODEL [options]")
    read = read_settings(settings)

    from q2n.planning.settings import planned

    found = planned(read, None if parsed.rates is None else Path(parsed.rates), parsed.ranks)
    if parsed.json:
        import json

        print(json.dumps(found.to_json()))
    else:
        _print(found)


def _print(found: Forecast) -> None:
    from q2n.logging import Screen

    screen = Screen(highlight=False)
    screen.print(found.title, soft_wrap=True, markup=False)
    screen.print(_table(found))
    screen.print(
        f"Memory at most {_size(found.host_bytes)}"
        + (f" and {_size(found.device_bytes)} on a device" if found.device_bytes else "")
        + f", disk {_size(found.disk_bytes)} (the checkpoint {_size(found.checkpoint_bytes)}), "
        f"about {duration(found.seconds)}",
        soft_wrap=True,
        markup=False,
    )
    for note in found.notes:
        screen.print(f"note: {note}", soft_wrap=True, markup=False)


def _table(found: Forecast) -> Table:
    from rich.table import Table

    device = any(stage.device_bytes for stage in found.stages)
    names = ("stage", "time", "bound by", "memory", *(["of a device"] if device else []))
    table = Table(*names, box=None)
    for stage in found.stages:
        if stage.host_bytes:
            row = [stage.name, duration(stage.seconds), stage.bound_by, _size(stage.host_bytes)]
            table.add_row(*row, *([_size(stage.device_bytes)] if device else []))
    return table


def _size(count: int | float) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def duration(seconds: float) -> str:
    """In words, to about three digits."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
