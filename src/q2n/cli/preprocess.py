"""`q2n preprocess CHECKPOINT --output DIR`: repair a quantized model's dense weights by training,
for a second quantization (PTQ1.61)."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from q2n.cli.flags import add_output_flags, reporter

NOT_OPTIONS = ("command", "run", "checkpoint", "output", "resume", "quiet", "json")


def add_preprocess(commands: Any) -> None:
    """Register `q2n preprocess`."""
    parser = commands.add_parser(
        "preprocess",
        help="train a low-rank repair of a quantized model, for a second quantization",
        usage="q2n preprocess CHECKPOINT --output DIR [options]",
        description="Restorative LoRA of PTQ1.61: the dense weights of a quantized checkpoint "
        "(native or any other that q2n reads) take a low-rank update that is trained on the next "
        "token. The result is a model in full precision, to be quantized again.",
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="Folder of a quantized model.")
    parser.add_argument("--output", required=True, help="Folder to write; it must not be there.")
    parser.add_argument("--resume", action="store_true", help="Go on with an interrupted run.")
    parser.add_argument("--corpus", help="Text to learn: corpus, file, folder; default: wikitext2.")
    parser.add_argument("--data-dir", help="Folder to read wikitext2, ptb and c4 from.")
    parser.add_argument("--protocol", help="How the text is cut; default: q2n.")
    parser.add_argument("--length", type=int, help="Tokens of a window; default: 2048.")
    parser.add_argument("--steps", type=int, help="Windows to see, one a step; default: 1000.")
    parser.add_argument("--accumulation", type=int, help="Steps of an update; default: 2.")
    parser.add_argument("--rank", type=int, help="Of each update; default: 64.")
    parser.add_argument("--alpha", type=int, help="Weight of the updates, times rank; default: 16.")
    parser.add_argument("--dropout", type=float, help="Of the updates' inputs; default: 0.1.")
    parser.add_argument("--learning-rate", type=float, help="The largest one; default: 1e-4.")
    parser.add_argument(
        "--leave", nargs="+", metavar="PATTERN", help="Linears without update; default: o_proj."
    )
    parser.add_argument(
        "--seed", type=int, help="Of windows, first weights and dropout; default: 0."
    )
    parser.add_argument("--save-every", type=int, help="Steps between saves; default: 100.")
    parser.add_argument("--device", help="cpu, cuda, ... or auto.")
    parser.add_argument("--dtype", help="float32, bfloat16, float16, or auto: the checkpoint's.")
    parser.add_argument(
        "--trust-remote-code",
        action="store_true",
        default=None,
        help="Let a checkpoint run its own Python code.",
    )
    add_output_flags(parser)
    parser.set_defaults(run=run)


def run(parsed: Namespace) -> None:
    """Train, merge and write; say what the loss did and what to do next."""
    options = {
        key: tuple(x) if isinstance(x, list) else x
        for key, x in vars(parsed).items()
        if x is not None and key not in NOT_OPTIONS
    }
    from q2n.api import preprocess

    reporting = reporter(parsed)
    done = preprocess(
        parsed.checkpoint, parsed.output, resume=parsed.resume, reporter=reporting, **options
    )
    if done.losses:
        first, last = done.ends
        reporting.event("done", output=str(done.directory), first_loss=first, last_loss=last)
        reporting.console.print(f"Loss {first:.3f} in the first tenth, {last:.3f} in the last")
    reporting.console.print(
        f"Written to {done.directory}. Next: q2n quantize {done.directory} --output DIR [options]",
        soft_wrap=True,
        markup=False,
    )
