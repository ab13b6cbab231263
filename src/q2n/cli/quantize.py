"""`q2n quantize MODEL --output DIR`: from a model to a quantized checkpoint."""

from __future__ import annotations

import os
from argparse import Namespace
from typing import TYPE_CHECKING, Any

from q2n.cli.flags import add_output_flags, add_settings, reporter, settings_of
from q2n.config.options import table
from q2n.config.output import output_folder
from q2n.config.reading import read_settings

if TYPE_CHECKING:
    from q2n.api import Quantized
    from q2n.logging import Reporter

BITS = (
    "bits_per_weight",
    "bits_per_weight_all",
    "full_precision_share",
    "bits_per_weight_outside",
    "bytes_outside",
)
"""What the record says of size."""

NOT_SETTINGS = ("command", "run", "checkpoint", "config", "print_config", "resume", "quiet", "json")
"""What the parser knows of a call besides settings."""


def add_quantize(commands: Any) -> None:
    """Register `q2n quantize`."""
    parser = commands.add_parser(
        "quantize",
        help="quantize a model",
        usage="q2n quantize MODEL --output DIR [options]",
        description="Quantize a causal language model.",
        epilog="Methods:\n" + _methods(),
    )
    parser.add_argument(
        "checkpoint",
        nargs="?",
        metavar="MODEL",
        help="Checkpoint folder, hub name or packaged model.",
    )
    parser.add_argument("--config", help="YAML file of settings; flags beside it win.")
    parser.add_argument(
        "--print-config", action="store_true", help="Print all settings as YAML and stop."
    )
    parser.add_argument("--resume", action="store_true", help="Go on with an interrupted run.")
    add_output_flags(parser)
    add_settings(parser)
    parser.set_defaults(run=run)


def run(parsed: Namespace) -> None:
    """Quantize, in one process or in those that torchrun has started; the first one says what came
    of it."""
    settings = _settings(parsed)
    read = read_settings(settings)  # refuses what it can before torch is loaded
    if parsed.print_config:
        _print_config(read.flat())
        return
    if os.environ.get("RANK", "0") == "0":  # by torchrun; the other ranks write nothing there
        output_folder(read.run, resume=parsed.resume)

    from q2n.api import quantize_among_ranks
    from q2n.distributed.launch import launched

    reporting = reporter(parsed)
    with launched() as ranks:
        done = quantize_among_ranks(
            ranks,
            settings.pop("model"),
            settings.pop("output"),
            resume=parsed.resume,
            reporter=reporting,
            **settings,
        )
    if done is not None:
        _say_done(done, reporting)


def _say_done(done: Quantized, reporting: Reporter) -> None:
    """What it cost and how to load the result: for a program, or for people."""
    facts = {
        "output": str(done.directory),
        "bytes_before": done.bytes_before,
        "bytes_after": done.bytes_after,
        **{key: done.record[key] for key in BITS if key in done.record},
        "seconds": done.timings["quantization_seconds"],
    }
    reporting.event("done", **facts)
    if reporting.mode == "bars":
        _print(done, facts)


def _settings(parsed: Namespace) -> dict[str, Any]:
    """What was set: in the file, and over it by flags."""
    return settings_of(parsed, NOT_SETTINGS)


def _methods() -> str:
    return "\n".join(f"{name}: {entry.summary}" for name, entry in table().methods.items())


def _print_config(flat: dict[str, Any]) -> None:
    """So that --config reads the same settings: None where a preset would say something else."""
    import yaml

    by_layer = any(flat[name] is not None for name in ("allocate", "allocation"))
    listed = {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in flat.items()
        if value not in ("", None) and not (by_layer and key == "bits")
    }
    again = read_settings(listed).flat()
    listed |= {key: None for key, value in flat.items() if value is None and again[key] is not None}
    print(yaml.safe_dump(listed, sort_keys=False), end="")


def _print(done: Quantized, facts: dict[str, Any]) -> None:
    from q2n.logging import Screen
    from q2n.report.tables import bits_line, comparison_lines

    console = Screen(highlight=False)
    console.print(
        f"\nWrote {done.directory} in {facts['seconds']:.0f} s: "
        f"{done.bytes_before / 1e6:.1f} MB -> {done.bytes_after / 1e6:.1f} MB "
        f"({done.bytes_before / done.bytes_after:.2f} times smaller), "
        f"{bits_line(facts)}.",
        soft_wrap=True,
        markup=False,
    )
    for line in comparison_lines(done.comparison):
        console.print(line, soft_wrap=True, markup=False)
    console.print("\nLoad it with\n")
    console.print(done.loading_example.strip(), markup=False)
