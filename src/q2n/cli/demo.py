"""`q2n demo`: a real model and real text, quantized to 3 bits in three ways."""

from __future__ import annotations

import os
import warnings
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from q2n.cli.flags import add_output_flags, reporter
from q2n.errors import InputError

if TYPE_CHECKING:
    from q2n.logging import Reporter

MODEL, CORPUS = "smollm2-135m", "sotu"
CALIBRATION_WINDOWS, EVALUATION_WINDOWS, LENGTH = 6, 6, 1024
PROMPT = "The capital of France is"

VARIANTS: tuple[tuple[str, str, str, dict[str, Any]], ...] = (
    ("GPTQ --quality good", "good", "what q2n recommends: closed forms", {"quality": "good"}),
    ("GPTQ --nullspace", "q2n", "GPTQ, then Q2N as in the paper", {"nullspace": "paper"}),
    ("GPTQ", "gptq", "the usual method, for comparison", {}),
)
"""Flags, folder, explanation and settings of what is compared; the best first."""


def add_demo(commands: Any) -> None:
    """Register `q2n demo`."""
    parser = commands.add_parser(
        "demo",
        help="quantize a small real model and compare",
        usage="q2n demo [--output DIR]",
        description="Quantize SmolLM2-135M to 3 bits: with what q2n recommends, with Q2N as in the "
        "paper, and with GPTQ alone.",
    )
    parser.add_argument("--output", default="q2n-demo", help="Folder for the checkpoints.")
    add_output_flags(parser)
    parser.set_defaults(run=run)


def run(parsed: Namespace) -> None:
    """Quantize, evaluate, print one table and a generated text."""
    from q2n.disk.lock import run_lock

    output = Path(parsed.output)
    with run_lock(output):
        if os.path.lexists(output):
            raise InputError(f"{output} exists; delete it or choose another folder with --output")
        _compare(output, parsed)


def _compare(output: Path, parsed: Namespace) -> None:
    from q2n.api import quantize

    reporting = reporter(parsed)
    reporting.console.print("original model")
    rows = [_evaluated("original", "its weights are 4-bit already", MODEL, reporting)]
    for title, name, explanation, settings in VARIANTS:
        reporting.console.print(f"\n{title}: {explanation}")
        done = quantize(
            MODEL,
            output / name,
            method="gptq",
            bits=3,
            corpus=CORPUS,
            reporter=reporting,
            windows=CALIBRATION_WINDOWS,
            length=LENGTH,
            **settings,
        )
        row = _evaluated(title, explanation, done.directory, reporting)
        rows.append({**row, "bits": done.record["bits_per_weight"], "bytes": done.bytes_after})
    text = _continue(output / VARIANTS[0][1])
    reporting.event("demo", rows=rows, text=text)
    if reporting.mode == "bars":
        _print(rows, text, output)


def _evaluated(
    title: str, explanation: str, model: str | Path, reporting: Reporter
) -> dict[str, Any]:
    from q2n.api import evaluate

    result = evaluate(
        model,
        ppl=CORPUS,
        windows=EVALUATION_WINDOWS,
        length=LENGTH,
        batch_size=4,
        reporter=reporting,
    )
    return {
        "model": title,
        "explanation": explanation,
        "perplexity": result.perplexity,
        "standard_error": result.standard_error,
    }


def _continue(folder: Path) -> str:
    """The prompt continued greedily by the checkpoint, loaded as any user would."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, CompressedTensorsConfig

    with warnings.catch_warnings():  # transformers notes that the config is given twice
        warnings.simplefilter("ignore", UserWarning)
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder, quantization_config=CompressedTensorsConfig(dequantize=True)
        )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt = tokenizer(PROMPT, return_tensors="pt")
    tokens = model.generate(**prompt, max_new_tokens=24, do_sample=False)
    return str(tokenizer.decode(tokens[0], skip_special_tokens=True))


def _print(rows: list[dict[str, Any]], text: str, output: Path) -> None:
    from rich.table import Table

    from q2n.logging import Screen
    from q2n.report.tables import with_error

    title = f"SmolLM2-135M, {CORPUS}: perplexity on {EVALUATION_WINDOWS} windows of {LENGTH} tokens"
    table = Table(title=title)
    table.add_column("3 bits per channel")
    table.add_column("what it is")
    for name in ("bits per weight", "checkpoint", "perplexity"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            row["model"],
            row["explanation"],
            f"{row['bits']:.2f}" if "bits" in row else "-",
            f"{row['bytes'] / 1e6:.0f} MB" if "bytes" in row else "-",
            with_error(row["perplexity"], row["standard_error"]),
        )
    console = Screen(highlight=False)
    console.print(table)
    console.print(
        "One seed: differences of a few percent between two quantized models are noise.\n"
        f"Checkpoints: {', '.join(str(output / name) for _, name, *_ in VARIANTS)}. The first one, "
        f"read by transformers, says:\n  {text!r}",
        markup=False,
    )
