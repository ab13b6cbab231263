"""Does quantizing a checkpoint stay within two blocks, the embeddings and the activations?

Writes a random LLaMA checkpoint in many shards, several times larger than a limit, and
quantizes it in a process whose memory the kernel limits (RLIMIT_DATA: all private memory that
it reserves, which is more than it uses; files mapped to be read do not count). The limit comes
on top of what the imported libraries reserve. Where it is too small the run fails.

    python benchmarks/memory_limit.py [--gigabytes 1.6] [--limit-gigabytes 0.5]
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, LlamaConfig

import q2n

SIZES = {"hidden_size": 512, "intermediate_size": 1408, "num_attention_heads": 8}
BLOCK_BYTES = 4 * (4 * 512**2 + 3 * 1408 * 512 + 2 * 512)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=1.6)
    parser.add_argument("--limit-gigabytes", type=float, default=0.5)
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        limited(options.run, options.limit_gigabytes)
        return
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        blocks = max(1, round(options.gigabytes * 1e9 / BLOCK_BYTES))
        write_model(model, blocks)
        size = sum(file.stat().st_size for file in model.glob("*.safetensors"))
        command = [sys.executable, __file__, "--run", folder]
        command += ["--limit-gigabytes", str(options.limit_gigabytes)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"failed under {options.limit_gigabytes} GB:\n{done.stderr[-2000:]}")
        facts = json.loads(done.stdout.splitlines()[-1])
        print(
            f"model {size / 1e9:.2f} GB in {blocks} shards, block {BLOCK_BYTES / 1e6:.0f} MB, "
            f"limit {options.limit_gigabytes:.2f} GB over the libraries: done; "
            f"resident {facts['start_mb']:.0f} MB at the start, at most {facts['peak_mb']:.0f} MB, "
            f"{facts['grown_mb'] * 1e6 / BLOCK_BYTES:.1f} blocks more"
        )


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


def limited(folder: Path, gigabytes: float) -> None:
    """Quantize under the limit; the tokenizer is a stand-in that splits into characters."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {chr(32 + code): code for code in range(95)} | {"<unk>": 95}
    plain = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="<unk>")
    (folder / "text.txt").write_text("It was a dark and stormy night. " * 400)
    resident, reserved = private_bytes("VmRSS"), private_bytes("VmData")
    resource.setrlimit(resource.RLIMIT_DATA, (reserved + int(gigabytes * 1e9),) * 2)
    q2n.quantize(
        folder / "model",
        folder / "out",
        tokenizer=tokenizer,
        corpus=str(folder / "text.txt"),
        bits=3,
        nullspace="paper",
        windows=4,
        length=128,
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(
        json.dumps(
            {
                "start_mb": resident / 1e6,
                "peak_mb": peak / 1e6,
                "grown_mb": (peak - resident) / 1e6,
            }
        )
    )


def private_bytes(field: str) -> int:
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
