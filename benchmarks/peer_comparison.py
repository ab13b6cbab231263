"""q2n next to llm-compressor in one run: time, peak memory, and perplexity of the result.

Both quantize the same model on the same token windows with GPTQ: 3 bits per channel,
asymmetric, act-order, true-sequential. Each runs in a process of its own, one after the other.

    python benchmarks/peer_comparison.py --data FOLDER --output FOLDER [--seeds 0 1 2]

The first FOLDER holds wiki.train.head.raw and wiki.test.raw. llm-compressor gets an
environment of its own (`peer_llmcompressor.py --make-env`). Its time is that of the
quantization alone; ours is the whole of `q2n.quantize`: reading, quantizing, writing.
A result that is in the output folder is not measured again.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

from measuring import peers

import q2n
from q2n.data.tokenizer import load_tokenizer
from q2n.models.checkpoint_files import resolve_checkpoint

WINDOWS, LENGTH = 16, 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ppl-windows", type=int, default=64)
    parser.add_argument("--peer-env", type=Path, default=Path(".peer-venv"))
    parser.add_argument("--one", nargs=2, metavar=("SIDE", "SEED"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(quantize_ours(options, options.one[0], int(options.one[1]))))
        return
    options.output.mkdir(parents=True, exist_ok=True)
    sides = ("q2n gptq", "q2n gptq + Q2N", "llm-compressor gptq")
    for seed in options.seeds:
        for side in sides:
            result = measured(options, side, seed)
            print(json.dumps(result), flush=True)
    print_table(options, sides)


def measured(options: argparse.Namespace, side: str, seed: int) -> dict:
    folder = options.output / f"{side.replace(' ', '_')}-seed{seed}"
    file = folder.with_suffix(".json")
    if not file.exists():
        run = quantize_theirs if side.startswith("llm") else in_own_process
        facts = run(options, folder, side, seed)
        result = q2n.compare(
            folder,
            options.model,
            ppl=str(options.data / "wiki.test.raw"),
            length=LENGTH,
            windows=options.ppl_windows,
            dtype="bfloat16",
            batch_size=4,
            tokenizer=load_tokenizer(resolve_checkpoint(options.model)),
        )
        facts |= {
            "side": side,
            "seed": seed,
            "perplexity": result.model.perplexity,
            "divergence": result.fidelity.divergence,
        }
        file.write_text(json.dumps(facts))
    return json.loads(file.read_text())


def in_own_process(options: argparse.Namespace, folder: Path, side: str, seed: int) -> dict:
    command = [sys.executable, __file__, "--data", options.data, "--output", options.output]
    command += ["--model", options.model, "--one", side, str(seed)]
    done = subprocess.run([str(x) for x in command], check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def quantize_ours(options: argparse.Namespace, side: str, seed: int) -> dict:
    folder = options.output / f"{side.replace(' ', '_')}-seed{seed}"
    start = time.perf_counter()
    q2n.quantize(
        options.model,
        folder,
        method="gptq",
        bits=3,
        nullspace="paper" if side.endswith("Q2N") else "off",
        corpus=str(options.data / "wiki.train.head.raw"),
        windows=WINDOWS,
        length=LENGTH,
        seed=seed,
    )
    return {
        "seconds": time.perf_counter() - start,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def quantize_theirs(options: argparse.Namespace, folder: Path, side: str, seed: int) -> dict:
    peer = peers.quantize(
        "peer_llmcompressor.py",
        ["--bits", 3, "--group-size", -1, "--stages", "linear"],
        folder,
        environment=options.peer_env,
        model=options.model,
        corpus=str(options.data / "wiki.train.head.raw"),
        windows=WINDOWS,
        length=LENGTH,
        seed=seed,
    )
    return {"seconds": peer["seconds"], "peak_mib": peer["peak_mib"]}


def print_table(options: argparse.Namespace, sides: tuple[str, ...]) -> None:
    results = {side: [measured(options, side, seed) for seed in options.seeds] for side in sides}

    def mean(side: str, key: str) -> float:
        return statistics.mean(result[key] for result in results[side])

    peer = sides[-1]
    print("\n| | seconds | ratio | peak MiB | ratio | perplexity, mean | by seed | KL, mean |")
    print("|---|---|---|---|---|---|---|---|")
    for side in sides:
        seeds = ", ".join(f"{result['perplexity']:.1f}" for result in results[side])
        seconds, peak = mean(side, "seconds"), mean(side, "peak_mib")
        print(
            f"| {side} | {seconds:.0f} | {seconds / mean(peer, 'seconds'):.2f} | {peak:.0f} | "
            f"{peak / mean(peer, 'peak_mib'):.2f} | {mean(side, 'perplexity'):.1f} | {seeds} | "
            f"{mean(side, 'divergence'):.3f} |"
        )


if __name__ == "__main__":
    main()
