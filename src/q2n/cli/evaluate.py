"""`q2n eval MODEL --ppl CORPUS`: perplexity, with its uncertainty and its conditions."""

from argparse import Namespace
from typing import Any

from q2n.cli.flags import add_output_flags, reporter


def add_eval(commands: Any) -> None:
    """Register `q2n eval`."""
    parser = commands.add_parser(
        "eval",
        help="measure perplexity",
        usage="q2n eval MODEL --ppl CORPUS [options]",
        description="Perplexity of a full-precision or quantized model.",
    )
    parser.add_argument("model", help="Checkpoint folder, hub name or smollm2-135m.")
    parser.add_argument("--ppl", required=True, help="Corpus name, file or folder.")
    parser.add_argument("--split", default="test", help="Part of the corpus.")
    parser.add_argument("--length", type=int, default=2048, help="Context length in tokens.")
    parser.add_argument("--windows", type=int, help="At most so many windows.")
    parser.add_argument("--stride", type=int, help="Tokens between windows; default: no overlap.")
    parser.add_argument("--batch-size", type=int, default=1, help="Windows in one forward pass.")
    parser.add_argument("--device", default="auto", help="cpu, cuda, ... or auto.")
    parser.add_argument(
        "--dtype", default="auto", help="float32, bfloat16, float16, or auto: the checkpoint's."
    )
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="Let a checkpoint run its own code."
    )
    add_output_flags(parser)
    parser.set_defaults(run=run)


def run(parsed: Namespace) -> None:
    """Evaluate and print the figure with what it was measured on."""
    import json
    from dataclasses import asdict

    from q2n.api import evaluate
    from q2n.logging import Screen
    from q2n.report.tables import with_error

    not_settings = ("command", "run", "model", "quiet", "json")
    settings = {key: value for key, value in vars(parsed).items() if key not in not_settings}
    result = evaluate(parsed.model, reporter=reporter(parsed), **settings)
    if parsed.json:
        print(json.dumps({"model": parsed.model, **asdict(result)}))
        return
    overlap = f"stride {result.stride}" if result.stride else "no overlap"
    if not parsed.quiet:
        Screen(highlight=False).print(
            f"perplexity {with_error(result.perplexity, result.standard_error)}  "
            f"({result.label}: {result.windows} windows of {result.length} tokens, {overlap}; "
            f"{result.seconds:.0f} s)",
            soft_wrap=True,
            markup=False,
        )
