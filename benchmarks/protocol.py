"""What each step around GPTQ gains on SmolLM2-135M and WikiText-2, with its spread.

Calibrates on a train text (windows drawn with each seed), evaluates on test texts. One line
a run goes to a JSONL file; a run that is in the file is not repeated, so this script can be
stopped and started again.

    python benchmarks/protocol.py --data FOLDER --results results.jsonl
    python benchmarks/protocol.py ... --variants gptq good best --settings "W4 g64" --seeds 0
    python benchmarks/protocol.py ... --variants good --windows 4 32 64
    python benchmarks/protocol.py ... --calibration c4.jsonl --evaluation wiki.test.raw ptb.txt
    python benchmarks/protocol.py ... --table

FOLDER holds the texts. Quantized in float32; evaluated in bfloat16, or as --eval-dtype says.
"""

import argparse
import itertools
import json
from typing import Any

from measuring.cells import ORIGINAL, add_conditions, measured, past
from measuring.paired import divergence

SETTINGS: dict[str, dict[str, Any]] = {
    "W3 per channel": {"bits": 3, "group_size": -1},
    "W2 g64": {"bits": 2, "group_size": 64},
    "W4 g64": {"bits": 4, "group_size": 64},
}
VARIANTS: dict[str, dict[str, Any]] = {
    "rtn": {"method": "rtn"},
    "gptq": {},
    "paper": {"nullspace": "paper"},
    "own scales per row": {"output_scales": "own", "scales_per": "row"},
    "own scales": {"output_scales": "own"},
    "scales per row": {"output_scales": True, "scales_per": "row"},
    "scales": {"output_scales": True},
    "scales principal": {"output_scales": True, "scales_directions": "principal"},
    "scales spectral": {"output_scales": True, "scales_directions": "spectral"},
    "scales held out": {"output_scales": True, "scales_held_out": True},
    "paper, scales": {"nullspace": "paper", "output_scales": True},
    "correct": {"correct": True},
    "correct, paper": {"correct": True, "nullspace": "paper"},
    "correct, own scales": {"correct": True, "output_scales": "own"},
    "correct, scales per row": {"correct": True, "output_scales": True, "scales_per": "row"},
    "good": {"quality": "good"},
    "good, principal": {"quality": "good", "scales_directions": "principal"},
    "good, spectral": {"quality": "good", "scales_directions": "spectral"},
    "good, held out": {
        "quality": "good",
        "scales_held_out": True,
        "correction_held_out": True,
    },
    "good, refit block": {"quality": "good", "refit": "block"},
    "best": {"quality": "best"},
    "best, refit both": {"quality": "best", "refit": "both"},
}


def main() -> None:
    options = parse_options()
    if not options.table:
        print(json.dumps(measured(options, ORIGINAL, None)))
        cells = itertools.product(
            options.seeds, options.settings, options.windows, options.variants
        )
        for seed, setting, windows, variant in cells:
            key = {"setting": setting, "variant": variant, "seed": seed, "windows": windows}
            settings = {"method": "gptq", **SETTINGS[setting], **VARIANTS[variant]}
            print(json.dumps(measured(options, key, settings)), flush=True)
    print_table(options)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_conditions(parser)
    parser.add_argument(
        "--settings", nargs="+", default=["W3 per channel", "W2 g64"], choices=SETTINGS
    )
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--windows", type=int, nargs="+", default=[16])
    return parser.parse_args()


def print_table(options: argparse.Namespace) -> None:
    groups: dict[tuple, list[dict[str, Any]]] = {}
    for line in past(options.results):
        same_protocol = line["protocol"] == options.protocol
        if same_protocol and line["variant"] != "original" and "refused" not in line:
            same = ("setting", "variant", "windows", "calibration")
            groups.setdefault((*(line[x] for x in same), *line["evaluation"]), []).append(line)
    print(
        "\n| setting | variant | windows | calibration | perplexity by seed | KL from the original "
        "(by seed) | bits | seconds |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for (setting, variant, windows, calibration, *_), lines in sorted(groups.items()):
        lines.sort(key=lambda line: line["seed"])
        values = ", ".join("/".join(f"{x:.1f}" for x in line["perplexity"]) for line in lines)
        seconds = ", ".join(f"{line['seconds']:.0f}" for line in lines)
        bits = lines[0]["bits_per_weight"]
        known = [line for line in lines if "divergence" in line]
        print(
            f"| {setting} | {variant} | {windows} | {calibration} | {values} | "
            f"{divergence(known) if known else ''} | {bits:.2f} | {seconds} |"
        )


if __name__ == "__main__":
    main()
