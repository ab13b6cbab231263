"""`q2n inspect DIR`: what was quantized, how, and what it did to each layer; with `--fidelity`,
what each block and layer costs."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from q2n.cli.flags import add_output_flags, reporter
from q2n.data.protocols import PROTOCOLS

if TYPE_CHECKING:
    from q2n.evaluation.block_costs import BlockCosts

_TEXT = ("ppl", "protocol", "data_dir", "split", "length", "windows")
_CONDITIONS = (*_TEXT, "batch_size", "device", "dtype")
WORST = 10
"""Layers in the table of those with the largest errors."""


def add_inspect(commands: Any) -> None:
    """Register `q2n inspect`."""
    parser = commands.add_parser(
        "inspect",
        help="show what was quantized, and how",
        usage="q2n inspect DIR [--json] [--plot FILE] [--html FILE] "
        "[--fidelity --ppl CORPUS [options]]",
        description="Show the record of a finished or interrupted quantization, or what each block "
        "and layer of a checkpoint costs.",
    )
    parser.add_argument("directory", help="Checkpoint folder, or the --output of a run.")
    parser.add_argument("--plot", help="Draw errors, alpha or costs by block (.png, .svg).")
    parser.add_argument("--html", metavar="FILE", help="Write figures and numbers as a page.")
    add_output_flags(parser)
    _add_fidelity(parser.add_argument_group("which layer costs what"))
    parser.set_defaults(run=run)


def _add_fidelity(group: Any) -> None:
    group.add_argument(
        "--fidelity",
        action="store_true",
        help="Quantize each block alone, and all blocks up to it, and compare predictions and "
        "outputs with the original's; of n blocks each is run about n times.",
    )
    group.add_argument("--ppl", help="Corpus name, file or folder.")
    group.add_argument("--reference", help="The original; default: the model in the record.")
    group.add_argument("--protocol", choices=PROTOCOLS, help="How the text is cut; default: q2n.")
    group.add_argument("--data-dir", help="Folder to read wikitext2, ptb and c4 from.")
    group.add_argument("--split", help="Part of the corpus; default: the protocol's, or test.")
    group.add_argument("--length", type=int, help="Context length in tokens; default: 512.")
    group.add_argument("--windows", type=int, help="At most so many windows; default: 4.")
    group.add_argument("--batch-size", type=int, help="Windows in one pass; default: 1.")
    group.add_argument("--device", help="cpu, cuda, ... or auto.")
    group.add_argument("--dtype", help="float32, bfloat16, float16, or auto: the checkpoint's.")
    group.add_argument(
        "--trust-remote-code", action="store_true", help="Let a checkpoint run its own code."
    )


def run(parsed: Namespace) -> None:
    """Print settings and one row per layer, or the costs of blocks and layers."""
    if parsed.plot:
        from q2n.report.figures.checkpoint import require_picture

        require_picture(Path(parsed.plot))
    if parsed.html:
        _require_page(parsed)
    if parsed.fidelity:
        _run_fidelity(parsed)
    else:
        _refuse_idle(parsed)
        _run_record(parsed)


def _require_page(parsed: Namespace) -> None:
    from q2n.errors import InputError
    from q2n.report.output import require_free

    if parsed.fidelity:
        raise InputError("--html shows the record of a checkpoint: leave out --fidelity, or --html")
    require_free(Path(parsed.html), "html")


def _refuse_idle(parsed: Namespace) -> None:
    """Refuse what says how to measure where nothing is measured."""
    from q2n.errors import InputError

    for name in ("reference", *_CONDITIONS, "trust_remote_code"):
        if getattr(parsed, name) not in (None, False):
            raise InputError(f"--{name.replace('_', '-')} does nothing without --fidelity: add it")


def _run_fidelity(parsed: Namespace) -> None:
    import json
    from dataclasses import asdict

    from q2n.api import inspect_fidelity
    from q2n.errors import InputError

    if parsed.ppl is None:
        raise InputError("--fidelity compares predictions on a text: give --ppl too")
    given = {name: getattr(parsed, name) for name in _CONDITIONS}
    costs = inspect_fidelity(
        parsed.directory,
        reference=parsed.reference,
        reporter=reporter(parsed),
        trust_remote_code=parsed.trust_remote_code,
        **{name: value for name, value in given.items() if value is not None},
    )
    if parsed.plot:
        from q2n.report.figures.checkpoint import plot_costs

        plot_costs(costs, Path(parsed.plot))
    if parsed.json:
        print(json.dumps({"directory": parsed.directory, **asdict(costs)}))
    elif not parsed.quiet:
        _print_costs(costs)


def _print_costs(costs: BlockCosts) -> None:
    from q2n.logging import Screen
    from q2n.report.tables import block_table, worst_table

    console = Screen(highlight=False)
    console.print(block_table(costs))
    console.print(worst_table(costs, WORST))
    console.print(
        f"{costs.label}: {costs.windows} windows of {costs.length} tokens, protocol "
        f"{costs.protocol}; reference {costs.reference}; {costs.seconds:.0f} s",
        soft_wrap=True,
        markup=False,
    )


def _run_record(parsed: Namespace) -> None:
    import json

    from q2n.report.reading import record_in

    record = record_in(Path(parsed.directory)).to_json()
    if parsed.plot:
        from q2n.report.figures.checkpoint import plot_layers
        from q2n.report.record import RunRecord

        plot_layers(RunRecord.from_json(record), Path(parsed.plot))
    if parsed.html:
        _write_page(parsed, record)
    if parsed.json:
        print(json.dumps(record))
    elif not parsed.quiet:
        _print(record)


def _write_page(parsed: Namespace, record: dict[str, Any]) -> None:
    from q2n.report.checkpoint_page import render_checkpoint
    from q2n.report.output import write

    name = Path(parsed.directory).resolve().name
    write(Path(parsed.html), render_checkpoint(name, record).encode())


def _print(values: dict[str, Any]) -> None:
    from q2n.config.reading import not_usual
    from q2n.logging import Screen
    from q2n.report.reading import comparison_of
    from q2n.report.record import RunRecord
    from q2n.report.tables import bits_line, comparison_lines, layer_table, settings_table

    record, console = RunRecord.from_json(values), Screen()
    if (blocks := values.get("finished_blocks")) is not None:
        console.print(f"[yellow]unfinished: {blocks} blocks are done; go on with --resume")
    table = settings_table(not_usual(record.settings))
    table.caption = "all others are as by default; --json prints all"
    console.print(table)
    console.print(layer_table(record))
    console.print(f"{bits_line(values)}; all stored parts counted")
    for line in comparison_lines(comparison_of(record)):
        console.print(line, soft_wrap=True, markup=False)
    for note in record.notes:
        console.print(f"note: {note}", markup=False)
    for name in record.ignored:
        console.print(f"left in full precision, as asked for: {name}", markup=False)
