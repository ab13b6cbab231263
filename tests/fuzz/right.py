"""What a right result is, found without q2n's own reading: through transformers and by hand."""

import random
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from q2n.formats.load import load_model

STEPS = 255
"""Of an 8-bit grid."""


def wrong_weights(model: Path, result: Path) -> str | None:
    """How a checkpoint of 8-bit weights differs from the model that transformers loads."""
    expected = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).state_dict()
    found = load_model(result, dtype=torch.float32).state_dict()
    if missing := expected.keys() - found.keys():
        return f"{sorted(missing)} are missing"
    for name, weight in expected.items():
        quantized = found[name]
        if quantized.shape != weight.shape:
            return f"{name} has shape {quantized.shape}, not {weight.shape}"
        if torch.equal(quantized, weight):
            continue
        if "_proj" not in name or weight.ndim != 2:
            return f"{name} is another"
        error, most = (quantized - weight).abs(), _most(weight)
        if (error > most).any():
            return f"{name} is off by {(error / most).max():.1f} steps"
    return None


def _most(weight: torch.Tensor) -> torch.Tensor:
    """Rounding with feedback moves a weight by a few steps of its row's grid, no more."""
    low, high = weight.amin(1, keepdim=True).clamp(max=0), weight.amax(1, keepdim=True).clamp(min=0)
    return 8 * (high - low) / STEPS + 1e-6 * weight.abs().amax()


def windows(model: Path, text: str, *, count: int, length: int, seed: int = 0) -> torch.Tensor:
    """Calibration windows as the published baselines draw them."""
    ids = AutoTokenizer.from_pretrained(model)(text).input_ids
    stream = random.Random(seed)
    starts = [stream.randint(0, len(ids) - length - 1) for _ in range(count)]
    return torch.tensor([ids[start : start + length] for start in starts])
