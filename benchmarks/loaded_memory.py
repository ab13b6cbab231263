"""Is a loaded native model as small as its file?

Loads the checkpoint packed, through transformers, and dense, each in a process of its own, and
generates a few tokens.

    q2n quantize smollm2-135m --method leanquant --bits 2 --format native ... --output DIR
    python benchmarks/loaded_memory.py DIR
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import psutil
import torch
from transformers import AutoModelForCausalLM

from q2n.formats.load import load_model
from q2n.formats.packed_linear import PackedLinear

TOKENS = 8


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=Path)
    parser.add_argument("--as", dest="how", choices=("packed", "dense"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.how:
        print(json.dumps(measured(options.directory, options.how)))
        return
    record = json.loads((options.directory / "q2n.json").read_text())
    counted = sum(
        layer["bits_per_weight"] * layer["shape"][0] * layer["shape"][1]
        for layer in record["layers"].values()
    )
    size = sum(file.stat().st_size for file in options.directory.glob("*.safetensors"))
    print(f"file {size / 1e6:.1f} MB, of it quantized linears {counted / 8e6:.1f} MB as counted\n")
    print("| loaded | linears | all tensors | resident, above an empty process | s a token |")
    print("|---|---|---|---|---|")
    for how in ("packed", "dense"):
        command = [sys.executable, __file__, str(options.directory), "--as", how]
        found = json.loads(subprocess.check_output(command).splitlines()[-1])
        print(
            f"| {how} | {found['linears'] / 1e6:.1f} MB | {found['tensors'] / 1e6:.1f} MB | "
            f"{found['resident'] / 1e6:.0f} MB | {found['seconds']:.2f} |"
        )


def measured(directory: Path, how: str) -> dict[str, float]:
    """Bytes of a model that has run, and seconds a token."""
    before = psutil.Process().memory_info().rss
    load, kind = {
        "packed": (AutoModelForCausalLM.from_pretrained, PackedLinear),
        "dense": (load_model, torch.nn.Linear),
    }[how]
    model = load(directory)
    linears = [module for module in model.model.layers.modules() if isinstance(module, kind)]
    prompt = torch.arange(3, 11).unsqueeze(0)
    model.generate(prompt, max_new_tokens=1, do_sample=False)
    start = time.perf_counter()
    model.generate(prompt, max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False)
    seconds = (time.perf_counter() - start) / TOKENS
    return {
        "linears": sum(x.nbytes for m in linears for x in m.parameters()),
        "tensors": sum(x.nbytes for x in (*model.parameters(), *model.buffers())),
        "resident": psutil.Process().memory_info().rss - before,
        "seconds": seconds,
    }


if __name__ == "__main__":
    main()
