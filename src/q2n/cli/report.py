"""`q2n report RUNS...`: the records of sweeps as tables, figures and a page."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from q2n.report.sweeps.report import Report

TEXTS = ("markdown", "csv", "html", "jsonl")
SCREEN = "-"
MOST_SKIPPED = 10
"""Places of which the reason is printed; all are counted."""


def add_report(commands: Any) -> None:
    """Register `q2n report`."""
    parser = commands.add_parser(
        "report",
        help="tables, figures and a page of the records of sweeps",
        usage="q2n report RUNS [RUNS ...] [--markdown [FILE]] [--csv FILE] [--html FILE] "
        "[--figures DIR] [--jsonl FILE]",
        description="Results of sweeps: one table a plan, one row for the cells that differ in "
        "their seed alone. Without an option they are printed.",
    )
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUNS",
        help="Folder of a sweep, folder of .json and .jsonl files, or such a file.",
    )
    parser.add_argument(
        "--markdown",
        nargs="?",
        const=SCREEN,
        metavar="FILE",
        help="Write the tables as Markdown; without FILE: print them.",
    )
    parser.add_argument("--csv", metavar="FILE", help="Write the tables as comma-separated values.")
    parser.add_argument("--html", metavar="FILE", help="Write a page that stands in one file.")
    parser.add_argument(
        "--figures", metavar="DIR", help="Write all figures into this folder, as SVG and PNG."
    )
    parser.add_argument("--jsonl", metavar="FILE", help="Collect all records in one file.")
    parser.set_defaults(run=run)


def run(parsed: Namespace) -> None:
    """Refuse what could not be written, read, write or print."""
    from q2n.report.output import require_free, write
    from q2n.report.sweeps.report import Report
    from q2n.report.sweeps.runs import read_runs

    given = {kind: getattr(parsed, kind) for kind in TEXTS if getattr(parsed, kind) is not None}
    files = {kind: Path(name) for kind, name in given.items() if name != SCREEN}
    _refuse_twice(files)
    for kind, file in files.items():
        require_free(file, kind)
    if parsed.figures:
        _require_folder(Path(parsed.figures))
    runs = [Path(name) for name in parsed.runs]
    _refuse_checkpoints(runs)
    report = Report(read_runs(runs))
    for kind, file in files.items():
        write(file, _text(kind, report).encode())
    written = [str(file) for file in files.values()]
    if parsed.figures:
        written.append(_figures(report, Path(parsed.figures)))
    for kind in given:
        if kind not in files:
            sys.stdout.write(_text(kind, report))
    if not (given or parsed.figures):
        _print(report)
    _say(report, written)


def _refuse_twice(files: dict[str, Path]) -> None:
    from q2n.errors import InputError

    kinds: dict[Path, str] = {}
    for kind, file in files.items():
        other = kinds.setdefault(file.resolve(), kind)
        if other != kind:
            raise InputError(
                f"--{other} and --{kind} both write {file}: give each a file of its own"
            )


def _refuse_checkpoints(runs: list[Path]) -> None:
    from q2n.errors import InputError
    from q2n.report.record import RECORD_FILE

    for run in runs:
        if (run / RECORD_FILE).is_file():
            raise InputError(
                f"{run} is a checkpoint, not a sweep: q2n inspect {run} prints its record, and "
                "with --html FILE makes a page of it"
            )


def _require_folder(folder: Path) -> None:
    from q2n.report.sweeps.figure_files import require_folder

    require_folder(folder)


def _figures(report: Report, folder: Path) -> str:
    from q2n.report.sweeps.figure_files import write_figures

    return f"{write_figures(report, folder)} figures in {folder}"


def _text(kind: str, report: Report) -> str:
    from q2n.report import table_texts

    if kind == "html":
        from q2n.report.sweeps.page import render_page

        return render_page(report)
    if kind == "jsonl":
        return report.lines
    if kind == "csv":
        return table_texts.comma_separated(report.result_tables)
    return table_texts.markdown(report.tables, report.introduction)


def _print(report: Report) -> None:
    from q2n.logging import Screen
    from q2n.report.table_texts import print_table

    screen = Screen(highlight=False)
    for table in report.tables:
        print_table(table, screen)


def _say(report: Report, written: list[str]) -> None:
    """What was read and left out goes to standard error, for standard output may be a table."""
    from q2n.logging import Screen

    screen, skipped = Screen(stderr=True, highlight=False), report.runs.skipped
    said = [f"read {len(report.runs.records)}, skipped {len(skipped)}", *written]
    screen.print("; ".join(said), markup=False, soft_wrap=True)
    if left_out := report.left_out:
        records = f"{left_out} record{'s' * (left_out > 1)}"
        why = "done with other settings, texts or models than those that count in their rows"
        screen.print(f"left out: {records}, {why}", soft_wrap=True)
    for each in skipped[:MOST_SKIPPED]:
        screen.print(f"skipped: {each.place}: {each.why}", markup=False, soft_wrap=True)
    if len(skipped) > MOST_SKIPPED:
        screen.print(f"and {len(skipped) - MOST_SKIPPED} more")
