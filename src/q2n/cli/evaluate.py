"""`q2n eval MODEL --ppl CORPUS`: perplexity, with its uncertainty and its conditions."""

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from jsonargparse import Namespace
from rich.console import Console

from q2n.api import evaluate
from q2n.cli.flags import add_output_flags, new_parser, reporter
from q2n.report.tables import with_error


def add_eval(commands: Any) -> Callable[[Namespace], None]:
    parser = new_parser(
        "eval MODEL --ppl CORPUS [options]", "Perplexity of a full-precision or quantized model."
    )
    parser.add_argument("model", help="Checkpoint folder, hub name or smollm2-135m.")
    parser.add_argument("--ppl", required=True, type=str, help="Corpus name, file or folder.")
    parser.add_argument("--split", type=str, default="test", help="Part of the corpus.")
    parser.add_argument("--length", type=int, default=2048, help="Context length in tokens.")
    parser.add_argument("--windows", type=int, help="At most so many windows.")
    parser.add_argument("--stride", type=int, help="Tokens between windows; default: no overlap.")
    parser.add_argument("--batch-size", type=int, default=1, help="Windows in one forward pass.")
    parser.add_argument("--device", type=str, default="auto", help="cpu, cuda, ... or auto.")
    parser.add_argument("--dtype", type=str, help="Run in float32, bfloat16 or float16.")
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="Let a checkpoint run its own code."
    )
    add_output_flags(parser)
    commands.add_subcommand("eval", parser, help="measure perplexity")
    return run


def run(parsed: Namespace) -> None:
    """Evaluate and print the figure with what it was measured on."""
    reporting = reporter(parsed)
    settings = {
        key: value
        for key, value in parsed.as_dict().items()
        if key not in ("model", "quiet", "json")
    }
    result = evaluate(parsed.model, reporter=reporting, **settings)
    if parsed.json:
        print(json.dumps({"model": parsed.model, **asdict(result)}))
        return
    overlap = f"stride {result.stride}" if result.stride else "no overlap"
    if not parsed.quiet:
        Console(highlight=False).print(
            f"perplexity {with_error(result.perplexity, result.standard_error)}  "
            f"({result.label}: {result.windows} windows of {result.length} tokens, {overlap}; "
            f"{result.seconds:.0f} s)",
            soft_wrap=True,
            markup=False,
        )
