"""Scores and continues token ids with mlx-lm.

    python run_mlx.py '{"folders": [DIR, ...], "tokens": [...], "prompt": 8, "new": 12}'

It computes in float32, also where a checkpoint has 16 bits: in bfloat16 MLX is inexact on a CPU
("own_dtype": true computes so all the same).
The last line printed is {"models": [..]}, by folder {"loss", "greedy", "seconds_per_token",
"packed", "tables"}: the number of packed linears and the bits of packed embeddings.
"""

import json
import sys
import time
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx import nn
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model


def mean_loss(model, tokens: list[int]) -> float:
    """In numpy: MLX's own logsumexp on a CPU is good to four digits only."""
    logits = np.array(model(mx.array([tokens[:-1]]))[0].astype(mx.float32)).astype(np.float64)
    normalizer = np.logaddexp.reduce(logits, axis=1)
    return float((normalizer - logits[np.arange(len(logits)), tokens[1:]]).mean())


def greedy(model, prompt: list[int], new: int) -> tuple[list[int], float]:
    """The ids that follow, and processor seconds for each."""
    cache, ids = make_prompt_cache(model), []
    logits = model(mx.array([prompt]), cache=cache)
    mx.eval(logits)
    start = time.process_time()
    for _ in range(new):
        ids.append(mx.argmax(logits[0, -1]).item())
        logits = model(mx.array([ids[-1:]]), cache=cache)
    return ids, (time.process_time() - start) / new


def results(asked: dict) -> list[dict]:
    found = []
    for folder in asked["folders"]:
        model, _ = load_model(Path(folder))
        if not asked.get("own_dtype"):
            model.set_dtype(mx.float32)
        packed = [name for name, m in model.named_modules() if isinstance(m, nn.QuantizedLinear)]
        loss = mean_loss(model, asked["tokens"])
        ids, seconds = greedy(model, asked["tokens"][: asked["prompt"]], asked["new"])
        tables = [m.bits for _, m in model.named_modules() if isinstance(m, nn.QuantizedEmbedding)]
        found.append(
            {
                "loss": loss,
                "greedy": ids,
                "seconds_per_token": seconds,
                "packed": len(packed),
                "tables": tables,
            }
        )
    return found


mx.set_default_device(mx.cpu)
print(json.dumps({"models": results(json.loads(sys.argv[1]))}))
