"""`q2n demo`: a real model, real text, three bits, with and without the null-space step."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from rich.console import Console
from rich.table import Table

from q2n.api import evaluate, quantize
from q2n.cli.flags import add_output_flags, new_parser, reporter
from q2n.errors import InputError
from q2n.logging import Reporter
from q2n.report.tables import with_error

MODEL, CORPUS = "smollm2-135m", "sotu"
CALIBRATION_WINDOWS, EVALUATION_WINDOWS, LENGTH = 16, 12, 1024
PROMPT = "The capital of France is"


VARIANTS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("GPTQ", "gptq", {}),
    ("GPTQ + Q2N (paper)", "gptq-q2n", {"nullspace": "paper"}),
    ("GPTQ, --quality good", "gptq-good", {"quality": "good"}),
)
"""Title, folder and settings of what is compared."""


def add_demo(commands: Any) -> Callable[[Namespace], None]:
    parser = new_parser(
        "demo [--output DIR]",
        "Quantize SmolLM2-135M to 3 bits with GPTQ, with Q2N after it, and with all closed forms.",
    )
    parser.add_argument(
        "--output", type=str, default="q2n-demo", help="Folder for the checkpoints."
    )
    add_output_flags(parser)
    commands.add_subcommand("demo", parser, help="quantize a small real model and compare")
    return run


def run(parsed: Namespace) -> None:
    """Quantize, evaluate, print one table and a generated text."""
    output, reporting = Path(parsed.output), reporter(parsed)
    if output.exists():
        raise InputError(f"{output} exists; delete it or choose another folder with --output")
    rows = [_evaluated("original (Q4_1 weights)", MODEL, reporting)]
    for title, name, settings in VARIANTS:
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
        row = _evaluated(title, done.directory, reporting)
        rows.append({**row, "bits": done.record["bits_per_weight"], "bytes": done.bytes_after})
    text = _continue(output / VARIANTS[-1][1])
    reporting.event("demo", rows=rows, text=text)
    if reporting.mode == "bars":
        _print(rows, text, output)


def _evaluated(title: str, model: str | Path, reporting: Reporter) -> dict[str, Any]:
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
    title = f"SmolLM2-135M, {CORPUS}: perplexity on {EVALUATION_WINDOWS} windows of {LENGTH} tokens"
    table = Table(title=title)
    table.add_column("weights")
    for name in ("bits/weight", "checkpoint", "perplexity"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            row["model"],
            f"{row['bits']:.2f}" if "bits" in row else "-",
            f"{row['bytes'] / 1e6:.0f} MB" if "bytes" in row else "-",
            with_error(row["perplexity"], row["standard_error"]),
        )
    console = Console(highlight=False)
    console.print(table)
    console.print(
        "One seed: differences of a few percent between two quantized models are noise.\n"
        f"Checkpoints: {', '.join(str(output / name) for _, name, _ in VARIANTS)}. The last one, "
        f"read by transformers, says:\n  {text!r}",
        markup=False,
    )
