"""What does AutoRound make of the same model, text and settings, and at what cost?

AutoRound (Cheng et al. 2024) learns the rounding and the range of every weight group by signed
gradient steps on each block's output. Run in an environment of its own on windows cut beforehand:

    python benchmarks/peer_autoround.py --make-env .autoround-venv \\
        --model MODEL_DIR --calibration calib.safetensors \\
        --bits 2 --group-size 64 --iters 50 --output OUT_DIR

It leaves in OUT_DIR a plain checkpoint with the dequantized weights in float32 (with --gguf TYPE:
its own GGUF file in blocks of q4_0, q4_k, ..), and `peer.json`: seconds of the quantization alone
(the model already loaded, nothing saved but the GGUF file), peak memory, versions.

Its own defaults hold (batches of 8, matrix products in bfloat16, compiled, learned minimum and
maximum, asymmetric as ours). Windows are cut into pieces of --length tokens: with 512 a step of 8
pieces is what the authors use for short runs.
"""

import argparse
import importlib.metadata
import os
import resource
import time
from pathlib import Path

from peer_llmcompressor import load_model, load_windows, run_in_environment, save_dense, write_json

PINNED = (
    "torch==2.13.0",
    "auto-round==0.16.1",
    "gguf==0.19.0",
    "sentencepiece==0.2.1",
)  # in this order: torch decides the build


def main() -> None:
    options = parse_options()
    if options.make_env:
        run_in_environment(options.make_env, __file__, PINNED)
    os.environ["HF_HUB_OFFLINE"] = "1"
    options.output.mkdir(parents=True)
    found = written_gguf(options) if options.gguf else written_dense(options)
    settings = {key: str(v) if isinstance(v, Path) else v for key, v in vars(options).items()}
    versions = {p: importlib.metadata.version(p) for p in ("auto-round", "torch")}
    write_json(options.output / "peer.json", {"settings": settings, "versions": versions, **found})


def written_dense(options: argparse.Namespace) -> dict[str, float]:
    """Write the dequantized weights; returns what they cost."""
    ready = rounding(options, bits=options.bits, group_size=options.group_size, sym=False)
    start = time.perf_counter()
    model, _ = ready.quantize()
    found = cost(start)
    plain = load_model(options.model)
    tuned = model.state_dict()
    plain.load_state_dict({name: tuned[name].float() for name in plain.state_dict()})
    save_dense(plain, options.model, options.output)
    return found


def written_gguf(options: argparse.Namespace) -> dict[str, float]:
    """Write AutoRound's own GGUF file; returns what it cost, writing included."""
    scheme = f"gguf:{options.gguf}"
    ready = rounding(options, scheme=scheme)
    start = time.perf_counter()
    ready.quantize_and_save(str(options.output), format=scheme)
    return cost(start)


def rounding(options: argparse.Namespace, **grid):
    """AutoRound with its model loaded."""
    import torch
    from auto_round import AutoRound
    from transformers import AutoTokenizer

    pieces = load_windows(options.calibration).reshape(-1, options.length)
    batches = [{"input_ids": x[None], "attention_mask": torch.ones_like(x[None])} for x in pieces]
    return AutoRound(
        load_model(options.model),
        AutoTokenizer.from_pretrained(options.model),
        iters=options.iters,
        nsamples=len(pieces),
        seqlen=options.length,
        batch_size=8,
        dataset=batches,
        amp=not options.float32,
        **grid,
    )


def cost(start: float) -> dict[str, float]:
    """Seconds since `start`, and the peak memory."""
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{seconds:.1f} s, {peak:.0f} MiB", flush=True)
    return {"seconds": seconds, "peak_mib": peak}


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="AutoRound: cost and quality.")
    parser.add_argument("--make-env", type=Path, help="make this environment and run in it")
    parser.add_argument("--model", type=Path, required=True, help="checkpoint folder")
    parser.add_argument("--calibration", type=Path, required=True, help="window file")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--bits", type=int, default=2)
    parser.add_argument("--group-size", type=int, default=64, help="-1: per channel")
    parser.add_argument("--gguf", metavar="TYPE", help="blocks of llama.cpp, in a GGUF file")
    parser.add_argument("--iters", type=int, default=50)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument(
        "--float32", action="store_true", help="matrix products in float32: no fast bfloat16 here"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
