"""Does everything that is done to a checkpoint stay within two blocks, the embeddings and the
activations?

Writes a random LLaMA checkpoint in many shards, several times larger than a limit. Three processes
work on it, of each of which the kernel limits the memory (RLIMIT_DATA: all private memory that it
reserves, which is more than it uses; so does a safetensors file that the library maps):

    quantize     is killed when half of the blocks are stored
    resume       goes on to the end, and measures perplexity and KL divergence
    evaluate     measures both again, from the two checkpoints

The limit comes on top of what the imported libraries reserve. Where it is too small a process
fails.

    python benchmarks/memory_limit.py [--gigabytes 1.6] [--limit-gigabytes 0.5]
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, LlamaConfig

import q2n
from q2n.logging import Reporter

SIZES = {"hidden_size": 512, "intermediate_size": 1408, "num_attention_heads": 8}
KILLED = 9
"""Exit code of the process that is killed."""
BLOCK_BYTES = 4 * (4 * 512**2 + 3 * 1408 * 512 + 2 * 512)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=1.6)
    parser.add_argument("--limit-gigabytes", type=float, default=0.5)
    parser.add_argument("--run", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        name, folder = options.run
        limited(name, Path(folder), options.limit_gigabytes)
        return
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        blocks = max(1, round(options.gigabytes * 1e9 / BLOCK_BYTES))
        write_model(model, blocks)
        size = sum(file.stat().st_size for file in model.glob("*.safetensors"))
        print(
            f"model {size / 1e9:.2f} GB in {blocks} shards, block {BLOCK_BYTES / 1e6:.0f} MB, "
            f"limit {options.limit_gigabytes:.2f} GB over the libraries",
            flush=True,
        )
        for name, expected in (("quantize", KILLED), ("resume", 0), ("evaluate", 0)):
            command = [sys.executable, __file__, "--run", name, folder]
            command += ["--limit-gigabytes", str(options.limit_gigabytes)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode != expected:
                sys.exit(f"{name} failed:\n{done.stderr[-2000:]}")
            print(f"{name}: {done.stdout.splitlines()[-1]}", flush=True)


def write_model(folder: Path, blocks: int) -> None:
    """A random checkpoint, one shard a block, written without ever being whole in memory."""
    folder.mkdir()
    config = LlamaConfig(
        **SIZES, num_hidden_layers=blocks, vocab_size=1024, architectures=["LlamaForCausalLM"]
    )
    config.dtype = torch.float32
    config.save_pretrained(folder)
    hidden, inner = SIZES["hidden_size"], SIZES["intermediate_size"]
    shapes = {
        **{f"self_attn.{x}_proj.weight": (hidden, hidden) for x in "qkvo"},
        "mlp.gate_proj.weight": (inner, hidden),
        "mlp.up_proj.weight": (inner, hidden),
        "mlp.down_proj.weight": (hidden, inner),
    }
    weight_map = {}
    outside = {
        "model.embed_tokens.weight": torch.randn(1024, hidden),
        "lm_head.weight": torch.randn(1024, hidden) / 32,
        "model.norm.weight": torch.ones(hidden),
    }
    for index in range(-1, blocks):
        tensors = outside if index < 0 else random_block(index, shapes, hidden)
        file = f"model-{index + 2:05d}-of-{blocks + 1:05d}.safetensors"
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert AutoConfig.from_pretrained(folder).num_hidden_layers == blocks


def random_block(index: int, shapes: dict, hidden: int) -> dict[str, torch.Tensor]:
    prefix = f"model.layers.{index}."
    tensors = {
        prefix + name: torch.randn(shape) / shape[1] ** 0.5 for name, shape in shapes.items()
    }
    norms = ("input_layernorm", "post_attention_layernorm")
    return tensors | {f"{prefix}{name}.weight": torch.ones(hidden) for name in norms}


class Killed(Reporter):
    """Ends the process when so many blocks are stored, as a kill does."""

    def __init__(self, blocks: int, say):
        super().__init__()
        self.left, self.say = blocks, say

    def event(self, name: str, **values) -> None:
        self.left -= name == "block"
        if not self.left:
            self.say(f"killed after {values['block']}")
            sys.stdout.flush()
            os._exit(KILLED)


def limited(name: str, folder: Path, gigabytes: float) -> None:
    """One of the three under the limit."""
    text = folder / "text.txt"
    text.write_text("It was a dark and stormy night. " * 400)
    resident, reserved = private_bytes("VmRSS"), private_bytes("VmData")
    resource.setrlimit(resource.RLIMIT_DATA, (reserved + int(gigabytes * 1e9),) * 2)

    def say(what: str) -> None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        grown = peak - resident
        print(
            f"{what}; resident {resident / 1e6:.0f} MB at the start, at most {peak / 1e6:.0f} MB, "
            f"{grown / BLOCK_BYTES:.1f} blocks more"
        )

    half = len(list((folder / "model").glob("*.safetensors"))) // 2
    measure = {"ppl": str(text), "windows": 8, "length": 128}
    if name == "evaluate":
        found = q2n.compare(
            folder / "out", folder / "model", tokenizer=tokenizer(), block_by_block=True, **measure
        )
    else:
        found = q2n.quantize(
            folder / "model",
            folder / "out",
            tokenizer=tokenizer(),
            corpus=str(text),
            bits=3,
            nullspace="paper",
            windows=4,
            length=128,
            ppl=str(text),
            ppl_windows=8,
            resume=name == "resume",
            reporter=Killed(half, say) if name == "quantize" else None,
        ).comparison
    say(f"perplexity {found.model.perplexity:.2f}, KL {found.fidelity.divergence:.6f}")


def tokenizer():
    """A stand-in that splits into characters."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {chr(32 + code): code for code in range(95)} | {"<unk>": 95}
    plain = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="<unk>")


def private_bytes(field: str) -> int:
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
