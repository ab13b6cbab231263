"""How fast do packed checkpoints decode, next to the dense model in the same process?

    q2n quantize smollm2-135m --method rtn --bits 4 --group-size 64 --format native --output rtn4
    python benchmarks/decoding.py --dense DENSE rtn4 ... [--threads 2]
    python benchmarks/decoding.py --layers [--threads 2]

Models are in bfloat16. Rounds go over the dense model and all checkpoints in turn, so that a busy
machine slows all of them down; of each the least and the median are printed, and the ratio of a
round's times, median and range over the rounds. The floor of a token is the time in which the bytes
of its linears (packed, or dense) come from memory, at the bandwidth that a sum over 512 MB reaches
in this process.

`--layers` times single layers of 4096 x 4096 for each representation: nanoseconds per weight for 1,
8 and 512 tokens, and the ratio to the dense product.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from measuring import heading
from torch import nn
from torch.nn.functional import linear
from transformers import AutoModelForCausalLM, PreTrainedModel

import q2n.registration  # noqa: F401  # makes transformers read the native layout
from q2n.formats.native import Native
from q2n.formats.packed_linear import PackedLinear
from q2n.formats.stored import StoredLayer
from q2n.layers.centred import CentredLinear
from q2n.layers.codebook import CodebookLinear
from q2n.layers.levels import LloydMaxLinear, TrellisLinear
from q2n.layers.quantized import QuantizedLinear
from q2n.layers.rotated import RotatedLinear
from q2n.layers.uniform import UniformLinear

TOKENS, PROMPT, SIDE = 16, 512, 4096


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoints", type=Path, nargs="*")
    parser.add_argument("--dense", type=Path)
    parser.add_argument("--layers", action="store_true")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    heading("Decoding from packed weights, in bfloat16")
    with torch.no_grad():
        if options.layers:
            time_layers(options.rounds)
        elif options.dense is None:
            parser.error("--dense: the folder of the model in 16 or 32 bits")
        else:
            time_models(options.dense, options.checkpoints, options.rounds)


def time_models(dense: Path, checkpoints: list[Path], rounds: int) -> None:
    folders = {"dense": dense, **{folder.name: folder for folder in checkpoints}}
    models = {name: loaded(folder) for name, folder in folders.items()}
    rate = bandwidth()
    print(f"bandwidth {rate / 1e9:.1f} GB/s\n")
    print("| model | linears | floor | a token | to dense | prompt of 512 | to dense |")
    print("|---|---|---|---|---|---|---|")
    tokens = in_turn({name: lambda m=m: decode(m) / TOKENS for name, m in models.items()}, rounds)
    prompts = in_turn({name: lambda m=m: read_prompt(m) for name, m in models.items()}, rounds)
    for name, model in models.items():
        size = sum(m.nbytes for m in parameters_of_linears(model))
        print(
            f"| {name} | {size / 1e6:.1f} MB | {size / rate * 1e3:.1f} ms "
            f"| {shown(tokens[name])} | {ratio(tokens[name], tokens['dense'])} "
            f"| {shown(prompts[name])} | {ratio(prompts[name], prompts['dense'])} |"
        )


def loaded(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()


def parameters_of_linears(model: PreTrainedModel) -> list[torch.Tensor]:
    kinds = (nn.Linear, PackedLinear)
    blocks = [m for m in model.model.layers.modules() if isinstance(m, kinds)]
    return [parameter for module in blocks for parameter in module.parameters()]


def decode(model: PreTrainedModel) -> float:
    """Seconds of greedy text after a prompt of 8 tokens."""
    ids = torch.arange(3, 11).unsqueeze(0)
    mask = torch.ones_like(ids)
    start = time.perf_counter()
    options = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS, "do_sample": False}
    model.generate(ids, attention_mask=mask, pad_token_id=0, **options)
    return time.perf_counter() - start


def read_prompt(model: PreTrainedModel) -> float:
    ids = torch.arange(PROMPT).unsqueeze(0) * 37 % 4000 + 5
    start = time.perf_counter()
    model(ids)
    return time.perf_counter() - start


def in_turn(runs: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each run in each round, after one to warm up."""
    for run in runs.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            seconds[name].append(run())
    return seconds


def shown(seconds: list[float]) -> str:
    """The least and the median."""
    return f"{min(seconds) * 1e3:.1f}, {statistics.median(seconds) * 1e3:.1f} ms"


def ratio(seconds: list[float], dense: list[float]) -> str:
    """Of each round; of the least times."""
    found = [a / b for a, b in zip(seconds, dense, strict=True)]
    least = min(seconds) / min(dense)
    return (
        f"{statistics.median(found):.2f} ({min(found):.2f} to {max(found):.2f}), least {least:.2f}"
    )


def bandwidth() -> float:
    """Bytes a second of a sum over 512 MB."""
    memory = torch.ones(2**27)
    return memory.nbytes / min(in_turn({"": lambda: seconds_of(memory.sum)}, 5)[""])


def seconds_of(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def time_layers(rounds: int) -> None:
    dense = nn.Linear(SIDE, SIDE, bias=False).bfloat16()
    rate = bandwidth()
    print(f"bandwidth {rate / 1e9:.1f} GB/s, {SIDE} x {SIDE} weights\n")
    print("| weights | bits | floor | 1 token | to dense | 8 tokens | 512 tokens |")
    print("|---|---|---|---|---|---|---|")
    for name, layer in layers().items():
        module = packed(layer)
        size = sum(p.nbytes for p in module.parameters())
        cells = [f"| {name} | {8 * size / SIDE**2:.2f} | {size / rate / SIDE**2 * 1e9:.3f}"]
        for count in (1, 8, PROMPT):
            x = torch.randn(count, SIDE).bfloat16()
            runs = {
                "packed": lambda x=x, module=module: seconds_of(lambda: module(x)),
                "dense": lambda x=x: seconds_of(lambda: linear(x, dense.weight)),
            }
            found = in_turn(runs, 5 * rounds if count <= 8 else rounds)
            cells.append(f"{min(found['packed']) / SIDE**2 * 1e9:.3f} ns")
            cells.append(ratio(found["packed"], found["dense"]))
        print(" | ".join(cells), "|")


def packed(layer: QuantizedLinear) -> PackedLinear:
    module = PackedLinear(StoredLayer.of(layer), None)
    for part, tensor in Native().encode("layer", layer, torch.bfloat16).items():
        setattr(module, part, nn.Parameter(tensor, requires_grad=False))
    return module


def layers() -> dict[str, QuantizedLinear]:
    random = torch.Generator().manual_seed(0)

    def codes(bits: int) -> torch.Tensor:
        return torch.randint(2**bits, (SIDE, SIDE), dtype=torch.uint8, generator=random)

    def uniform(bits: int, size: int) -> QuantizedLinear:
        groups = SIDE // size
        return UniformLinear(
            codes=codes(bits),
            scale=torch.rand(SIDE, groups, generator=random).bfloat16(),
            zero=codes(bits)[:, :groups].contiguous(),
            bits=bits,
            group_size=size,
            symmetric=False,
        )

    scale = torch.rand(SIDE, generator=random).half()
    trellis = {b: TrellisLinear(codes=codes(b), scale=scale, bits=b) for b in (2, 3, 4)}
    table = torch.randn(SIDE, 8, generator=random).bfloat16()
    return {
        **{f"uniform {b}, g64": uniform(b, 64) for b in (2, 3, 4, 8)},
        "uniform 4, rows": uniform(4, SIDE),
        "centred 2": CentredLinear(codes=codes(2), scale=scale, bits=2),
        "lloyd-max 3": LloydMaxLinear(codes=codes(3), scale=scale, bits=3),
        "codebook 3": CodebookLinear(codes=codes(3), codebook=table, bits=3),
        **{f"trellis {b}": layer for b, layer in trellis.items()},
        "rotated trellis 2": RotatedLinear(inner=trellis[2], projection="kronecker", seed=1),
    }


if __name__ == "__main__":
    main()
