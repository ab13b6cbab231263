"""What does llm-compressor make of the same model, text and settings, and at what cost?

Our results are compared with a peer that shares no code with us. This script runs
llm-compressor's `GPTQModifier`, or its `AWQModifier` with --algorithm awq, in an environment of its
own, on token windows that were cut beforehand, so that both sides see the same tokens:

    python benchmarks/peer_llmcompressor.py --make-env .peer-venv \\
        --model MODEL_DIR --calibration calib.safetensors --evaluation test.safetensors \\
        --bits 3 --group-size -1 --output OUT_DIR

It leaves in OUT_DIR a plain checkpoint that holds the dequantized weights in float32,
and `peer.json`: wall and processor seconds of the quantization alone (the model already
loaded, nothing saved), peak resident memory up to its end, versions, and the perplexity.

Window files are safetensors with one int64 tensor `tokens` of shape [windows, length].

The settings of both sides, matched:
- act-order: llm-compressor's `actorder: static` visits the columns by descending
  Hessian diagonal and keeps groups where they are (without groups only the order changes);
- scales and zero points from the minimum and the maximum of the original weights;
- `--stages block` is llm-compressor's default: the statistics of all linears of a decoder
  block are taken in one pass with the block still at full precision;
- `--stages linear` gives every linear a stage of its own. Linears that share an input then
  see the same statistics, so this is true-sequential GPTQ, at the price of one more pass for
  each of q, k, v and gate, up.

AWQ (Lin et al. 2023) scales input channels by factors that are searched for (20 steps, on each
layer's output) and rounds to nearest: of these settings it takes the grid alone. Factors are tried
with and without the weights' own size ("both", as its documentation does).
"""

import argparse
import importlib.metadata
import json
import math
import os
import platform
import resource
import subprocess
import sys
import time
import venv
from pathlib import Path

PINNED = ("torch==2.13.0", "llmcompressor==0.14.0.1")  # in this order: torch decides the build


def make_environment(folder: Path, pinned: tuple[str, ...] = PINNED) -> Path:
    """A virtual environment with the pinned packages; returns its interpreter."""
    python = folder / "bin" / "python"
    finished = folder / ".installed"
    if not finished.exists():
        venv.create(folder, with_pip=True)
        for package in pinned:
            subprocess.run([python, "-m", "pip", "install", "--quiet", package], check=True)
        finished.write_text("\n".join(pinned) + "\n")
    return python


def load_windows(path: Path):
    """Token windows, int64 [windows, length]."""
    from safetensors.torch import load_file

    return load_file(path)["tokens"]


def load_model(path: Path):
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def quantize(model, windows, options: argparse.Namespace) -> dict[str, float]:
    """Quantize `model` in place with llm-compressor; returns what it cost."""
    from llmcompressor import oneshot
    from torch.utils.data import DataLoader

    modifiers = recipe(options)
    if options.algorithm == "awq":
        leave_memory_unpinned()
    batches = DataLoader([{"input_ids": window[None]} for window in windows], batch_size=None)
    start, processor_start = time.perf_counter(), time.process_time()
    oneshot(
        model=model,
        recipe=modifiers,
        dataset=batches,
        num_calibration_samples=len(windows),
        pipeline="sequential",
        sequential_targets=["Linear"] if options.stages == "linear" else None,
    )
    if options.algorithm == "awq":
        round_to_nearest(model)
    seconds, processor = time.perf_counter() - start, time.process_time() - processor_start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": seconds, "processor_seconds": processor, "peak_mib": peak}


def recipe(options: argparse.Namespace):
    """The modifiers of the algorithm asked for."""
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier

    weights = {
        "num_bits": options.bits,
        "type": "int",
        "symmetric": options.symmetric,
        "strategy": "channel" if options.group_size == -1 else "group",
        "group_size": None if options.group_size == -1 else options.group_size,
        "observer": "memoryless_minmax",
    }
    quantized = {
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        "ignore": ["lm_head"],
    }
    if options.algorithm == "awq":
        return [AWQModifier(duo_scaling="both"), QuantizationModifier(**quantized)]
    order = "static" if options.act_order else None
    return GPTQModifier(**quantized, actorder=order, dampening_frac=options.damping)


def leave_memory_unpinned() -> None:
    """llm-compressor 0.14 pins memory for a GPU, which raises where there is none."""
    import torch
    from llmcompressor.pipelines.cache import IntermediatesCache

    if not torch.cuda.is_available():
        IntermediatesCache.pin_memory = lambda *_, **__: None


def round_to_nearest(model) -> None:
    """What a QuantizationModifier leaves to the moment of saving."""
    import torch
    from compressed_tensors.quantization import forward_quantize

    with torch.no_grad():
        for module in model.modules():
            scheme = getattr(module, "quantization_scheme", None)
            if scheme is not None:
                rounded = forward_quantize(module, module.weight, "weight", scheme.weights)
                module.weight.copy_(rounded)


def dense_copy(model, source: Path):
    """The plain model of `source` with the (dequantized) weights of `model`."""
    plain = load_model(source)
    trained = model.state_dict()
    plain.load_state_dict({name: trained[name] for name in plain.state_dict()})
    return plain


def perplexity(model, windows) -> dict[str, float]:
    """exp of the mean over windows of the mean cross-entropy of their predicted tokens."""
    import torch
    from torch.nn.functional import cross_entropy

    losses = []
    with torch.inference_mode():
        for window in windows:
            logits = model(window[None, :], use_cache=False).logits[0, :-1].float()
            losses.append(cross_entropy(logits, window[1:]).item())
    mean = sum(losses) / len(losses)
    return {"perplexity": math.exp(mean), "windows": len(losses), "tokens": windows.numel()}


def save_dense(model, source: Path, output: Path) -> None:
    from transformers import AutoTokenizer

    model.save_pretrained(output)
    AutoTokenizer.from_pretrained(source).save_pretrained(output)


def run(options: argparse.Namespace) -> dict:
    """One quantization with its cost and, when asked, its perplexity."""
    import torch

    torch.set_num_threads(options.threads)
    record: dict = {
        "settings": {key: str(v) if isinstance(v, Path) else v for key, v in vars(options).items()},
        "versions": {p: importlib.metadata.version(p) for p in ("llmcompressor", "torch")},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }
    calibration = load_windows(options.calibration)
    model = load_model(options.model)
    record["load_average"] = os.getloadavg()[0]
    record |= quantize(model, calibration, options)
    dense = dense_copy(model, options.model)
    del model
    save_dense(dense, options.model, options.output)
    write_json(options.output / "peer.json", record)
    if options.evaluation:
        record["evaluation"] = perplexity(dense, load_windows(options.evaluation))
        write_json(options.output / "peer.json", record)
    return record


def write_json(path: Path, record: dict) -> None:
    path.write_text(json.dumps(record, indent=2) + "\n")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="GPTQ or AWQ by llm-compressor: cost and quality.")
    parser.add_argument("--make-env", type=Path, help="make this environment and run in it")
    parser.add_argument("--model", type=Path, required=True, help="checkpoint folder")
    parser.add_argument("--calibration", type=Path, required=True, help="window file")
    parser.add_argument("--evaluation", type=Path, help="window file")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--algorithm", choices=("gptq", "awq"), default="gptq")
    parser.add_argument("--bits", type=int, default=3)
    parser.add_argument("--group-size", type=int, default=-1, help="-1: per channel")
    parser.add_argument("--symmetric", action="store_true")
    parser.add_argument("--act-order", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--damping", type=float, default=0.01)
    parser.add_argument("--stages", choices=("block", "linear"), default="block")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    return parser.parse_args()


def run_in_environment(folder: Path, script: str, pinned: tuple[str, ...] = PINNED) -> None:
    """Run the script again with the same arguments, less --make-env, in that environment."""
    python = make_environment(folder, pinned)
    where = sys.argv.index("--make-env")
    arguments = sys.argv[1:where] + sys.argv[where + 2 :]
    sys.exit(subprocess.run([python, script, *arguments]).returncode)


def main() -> None:
    options = parse_options()
    if options.make_env:
        run_in_environment(options.make_env, __file__)
    os.environ["HF_HUB_OFFLINE"] = "1"
    options.output.mkdir(parents=True)
    print(json.dumps(run(options), indent=2))


if __name__ == "__main__":
    main()
