"""`q2n sweep PLAN --output RUNS`: all cells of a plan of experiments; without one, the recipes."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from q2n.cli.flags import add_output_flags, reporter
from q2n.cli.plan import duration
from q2n.errors import InputError

if TYPE_CHECKING:
    from rich.table import Table

    from q2n.experiments.cells import Cell
    from q2n.experiments.run import Request


def add_sweep(commands: Any) -> None:
    """Register `q2n sweep`."""
    parser = commands.add_parser(
        "sweep",
        help="quantize and measure everything that a plan of experiments says",
        usage="q2n sweep [PLAN --output RUNS] [options]",
        description="Do the cells of a plan, each once, whatever processes run over one folder; "
        "without a plan list the recipes. `q2n report RUNS` shows what came of it.",
    )
    parser.add_argument("plan", nargs="?", help="YAML file, or the name of a recipe.")
    parser.add_argument("--output", metavar="RUNS", help="Folder of the records.")
    parser.add_argument("--scale", help="Scale of the plan: other models, settings, texts.")
    parser.add_argument(
        "--only",
        action="append",
        metavar="AXIS=LABEL",
        help="Only the cells with this label; with several of one axis those with one of them.",
    )
    parser.add_argument(
        "--known",
        action="append",
        default=[],
        metavar="RECORDS",
        help="Records from elsewhere (folder, .json, .jsonl): cells that stand there are copied.",
    )
    parser.add_argument("--part", metavar="K/N", help="Every N-th cell from the K-th on, from 1.")
    parser.add_argument("--data-dir", help="Folder to read texts and tasks from, not the hub.")
    parser.add_argument(
        "--dry-run", action="store_true", help="List the cells, and about how long they take."
    )
    parser.add_argument("--keep", action="store_true", help="Keep the checkpoints in RUNS/work.")
    parser.add_argument("--retry", action="store_true", help="Do again what was refused.")
    add_output_flags(parser)
    parser.set_defaults(run=run)


def run(parsed: Namespace) -> None:
    """Do the cells, or say what would be done."""
    if parsed.plan is None:
        _print_recipes()
        return
    if parsed.output is None:
        raise InputError("give --output RUNS, the folder of the records")
    from q2n.experiments.run import Request

    request = Request(
        plan=parsed.plan,
        scale=parsed.scale,
        only=_only(parsed.only or ()),
        part=None if parsed.part is None else _part(parsed.part),
        data_dir=parsed.data_dir,
    )
    if parsed.dry_run:
        _print_cells(request.cells(), parsed)
    else:
        _sweep(request, parsed)


def _only(texts: Iterable[str]) -> dict[str, list[str]]:
    only: dict[str, list[str]] = {}
    for text in texts:
        axis, equals, label = text.partition("=")
        if not (axis and equals):
            raise InputError(f"--only {text} is not AXIS=LABEL")
        only.setdefault(axis, []).append(label)
    return only


def _part(text: str) -> tuple[int, int]:
    try:
        number, of = map(int, text.split("/"))
    except ValueError as cause:
        raise InputError(f"--part {text} is not K/N, such as 2/8") from cause
    return number, of


def _sweep(request: Request, parsed: Namespace) -> None:
    import json
    from dataclasses import asdict

    from q2n.experiments.run import run_sweep
    from q2n.logging import Screen

    outcome = run_sweep(
        request,
        parsed.output,
        keep=parsed.keep,
        retry=parsed.retry,
        known=parsed.known,
        reporter=reporter(parsed),
    )
    if parsed.json:
        print(json.dumps(asdict(outcome)))
    elif not parsed.quiet:
        text = f"{outcome.done} cells done, {outcome.found} were there"
        text += f", {outcome.copied} copied from other records" if outcome.copied else ""
        text += f", {outcome.elsewhere} left to other processes" if outcome.elsewhere else ""
        text += f", {outcome.refused} refused (--retry does them again)" if outcome.refused else ""
        Screen(highlight=False).print(f"{text}; q2n report {parsed.output}", markup=False)
    elif outcome.refused:
        text = f"{outcome.refused} cells refused; q2n report {parsed.output} says why"
        Screen(stderr=True, highlight=False).print(text, markup=False, soft_wrap=True)


def _print_cells(cells: list[Cell], parsed: Namespace) -> None:
    """One row a cell that is not done, and the time of all."""
    import json

    from q2n.experiments.run import estimated
    from q2n.logging import Screen

    left, time = estimated(cells, parsed.output, parsed.known, retry=parsed.retry)
    if parsed.json:
        print(json.dumps({"cells": [dict(cell.labels) for cell in left], **time}))
        return
    unknown = f", {time['unknown']} not estimated (no such model here)" if time["unknown"] else ""
    screen = Screen(highlight=False)
    screen.print(_table(left))
    screen.print(
        f"{len(left)} of {len(cells)} cells to do, about {duration(time['seconds'])}{unknown}"
    )


def _table(cells: list[Cell]) -> Table:
    from rich.markup import escape
    from rich.table import Table

    axes = list(dict.fromkeys(axis for cell in cells for axis in cell.labels))
    table = Table(*map(escape, axes), box=None)
    for cell in cells:
        table.add_row(*(escape(str(cell.labels.get(axis, "original"))) for axis in axes))
    return table


def _print_recipes() -> None:
    from rich.table import Table

    from q2n.experiments.plan_file import read_plan, recipes
    from q2n.logging import Screen

    table = Table("recipe", "scales", "", box=None)
    for name in recipes():
        plan = read_plan(name)
        table.add_row(f"[bold]{name}", ", ".join(plan.scales), plan.title)
    Screen().print(table)
