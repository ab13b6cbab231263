"""`q2n quantize MODEL --output DIR`: from a model to a quantized checkpoint."""

from collections.abc import Callable
from typing import Any

import yaml
from jsonargparse import Namespace
from rich.console import Console

from q2n.api import Quantized, quantize
from q2n.cli.flags import add_options, add_output_flags, new_parser, reporter
from q2n.config import QuantizeConfig, method_options, run_options, step_options
from q2n.report.tables import with_error

RUNTIME = ("checkpoint", "config", "print_config", "resume", "quiet", "json")
"""Flags of a call, which are not settings of the result."""


def add_quantize(commands: Any) -> Callable[[Namespace], None]:
    parser = new_parser(
        "quantize MODEL --output DIR [options]",
        "Quantize a causal language model.",
        config_file=True,
    )
    parser.add_argument(
        "checkpoint",
        nargs="?",
        metavar="MODEL",
        help="Checkpoint folder, hub name or packaged model.",
    )
    add_options(parser, "run", run_options())
    add_options(parser, "method (each has its own defaults)", method_options())
    add_options(parser, "correction and step", step_options())
    parser.add_argument("--resume", action="store_true", help="Go on with an interrupted run.")
    add_output_flags(parser)
    commands.add_subcommand("quantize", parser, help="quantize a model")
    return run


def run(parsed: Namespace) -> None:
    """Quantize, then say what it cost and how to load the result."""
    settings = {
        key: value
        for key, value in parsed.as_dict().items()
        if key not in RUNTIME and value is not None
    }
    if parsed.checkpoint:
        settings["model"] = parsed.checkpoint
    if parsed.print_config:
        _print_config(QuantizeConfig.from_settings(settings))
        return
    reporting = reporter(parsed)
    done = quantize(
        settings.pop("model", ""),
        settings.pop("output", ""),
        resume=parsed.resume,
        reporter=reporting,
        **settings,
    )
    facts = {
        "output": str(done.directory),
        "bytes_before": done.bytes_before,
        "bytes_after": done.bytes_after,
        "bits_per_weight": done.record["bits_per_weight"],
        "seconds": done.timings["quantization_seconds"],
    }
    reporting.event("done", **facts)
    if reporting.mode == "bars":
        _print(done, facts)


def _print_config(config: QuantizeConfig) -> None:
    given = {key: value for key, value in config.settings().items() if value not in ("", None)}
    listed = {
        key: list(value) if isinstance(value, tuple) else value for key, value in given.items()
    }
    print(yaml.safe_dump(listed, sort_keys=False), end="")


def _print(done: Quantized, facts: dict[str, Any]) -> None:
    console = Console(highlight=False)
    console.print(
        f"\nWrote {done.directory} in {facts['seconds']:.0f} s: "
        f"{done.bytes_before / 1e6:.1f} MB -> {done.bytes_after / 1e6:.1f} MB "
        f"({done.bytes_before / done.bytes_after:.2f} times smaller), "
        f"{facts['bits_per_weight']:.3f} bits a quantized weight.",
        soft_wrap=True,
        markup=False,
    )
    for which, result in done.perplexities.items():
        console.print(
            f"Perplexity of the {which} weights: "
            f"{with_error(result.perplexity, result.standard_error)} ({result.label}, "
            f"{result.windows} windows of {result.length} tokens)",
            soft_wrap=True,
            markup=False,
        )
    console.print("\nLoad it with\n")
    console.print(done.loading_example.strip(), markup=False)
