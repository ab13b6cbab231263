"""GPTQ with and without the null-space step on SmolLM2-135M and WikiText-2, with its spread.

Calibrates on a train text (windows drawn with each seed), evaluates on a test text. One line
a run goes to a JSONL file; a run that is in the file is not repeated, so this script can be
stopped and started again. Prints mean and range over the seeds.

    python benchmarks/protocol.py --data FOLDER --results results.jsonl

FOLDER holds wiki.train.head.raw and wiki.test.raw.
"""

import argparse
import json
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

import q2n

SETTINGS: dict[str, dict[str, Any]] = {
    "3 bits per channel": {"bits": 3, "group_size": -1},
    "2 bits, groups of 64": {"bits": 2, "group_size": 64},
}
VARIANTS: dict[str, dict[str, Any]] = {
    "rtn": {"method": "rtn"},
    "gptq": {"method": "gptq"},
    "gptq + Q2N": {"method": "gptq", "nullspace": True},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--ppl-windows", type=int, default=64)
    parser.add_argument("--dtype", default="auto", help="dtype to quantize in")
    parser.add_argument("--eval-dtype", default="float32", help="dtype to evaluate in")
    options = parser.parse_args()
    original = measured(options, {"setting": "-", "variant": "original", "seed": None}, None)
    print(f"original: {original['perplexity']:.3f} +- {original['standard_error']:.3f}")
    for seed in options.seeds:
        for setting, grid in SETTINGS.items():
            for variant, method in VARIANTS.items():
                if method["method"] == "rtn" and seed != options.seeds[0]:
                    continue  # no calibration, no seed
                key = {"setting": setting, "variant": variant, "seed": seed}
                print(json.dumps(measured(options, key, {**grid, **method})), flush=True)
    print_table(options)


def measured(options: argparse.Namespace, key: dict, settings: dict | None) -> dict[str, Any]:
    """The result of one run, from the file or by doing it."""
    conditions = {
        **key,
        "windows": options.windows,
        "length": options.length,
        "ppl_windows": options.ppl_windows,
        "dtype": options.dtype,
        "eval_dtype": options.eval_dtype,
    }
    for line in past(options.results):
        if all(line.get(name) == value for name, value in conditions.items()):
            return line
    result = {**conditions, **run(options, key, settings)}
    with options.results.open("a") as stream:
        stream.write(json.dumps(result) + "\n")
    return result


def past(results: Path) -> list[dict[str, Any]]:
    return (
        [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    )


def run(options: argparse.Namespace, key: dict, settings: dict | None) -> dict[str, Any]:
    folder = Path(tempfile.mkdtemp(dir=options.results.parent))
    try:
        model, facts = options.model, {}
        if settings is not None:
            done = q2n.quantize(
                options.model,
                folder / "checkpoint",
                corpus=str(options.data / "wiki.train.head.raw"),
                windows=options.windows,
                length=options.length,
                seed=key["seed"],
                dtype=options.dtype,
                **settings,
            )
            model = str(done.directory)
            layers = done.record["layers"].values()
            facts = {
                "bits_per_weight": done.record["bits_per_weight"],
                "seconds": done.timings["quantization_seconds"],
                "output_error": statistics.mean(x.get("output_error", 0.0) for x in layers),
            }
        result = q2n.evaluate(
            model,
            ppl=str(options.data / "wiki.test.raw"),
            length=options.length,
            windows=options.ppl_windows,
            dtype=options.eval_dtype,
            batch_size=4,
        )
        return {
            **facts,
            "perplexity": result.perplexity,
            "standard_error": result.standard_error,
            "windows_sha256": result.sha256,
            "eval_seconds": result.seconds,
        }
    finally:
        shutil.rmtree(folder)


def print_table(options: argparse.Namespace) -> None:
    print("\n| setting | weights | perplexity, mean | range over seeds | seeds | bits | seconds |")
    print("|---|---|---|---|---|---|---|")
    lines = [x for x in past(options.results) if x["eval_dtype"] == options.eval_dtype]
    for setting in SETTINGS:
        for variant in VARIANTS:
            rows = [x for x in lines if (x["setting"], x["variant"]) == (setting, variant)]
            if not rows:
                continue
            values = [row["perplexity"] for row in rows]
            print(
                f"| {setting} | {variant} | {statistics.mean(values):.2f} | "
                f"{min(values):.2f} - {max(values):.2f} | {len(rows)} | "
                f"{rows[0]['bits_per_weight']:.2f} | "
                f"{statistics.mean(row['seconds'] for row in rows):.0f} |"
            )


if __name__ == "__main__":
    main()
