r"""Log probabilities of one position in 16 bits a word, as llama.cpp keeps them.

With M the highest logit and m the lowest, but at least M - 16,

    scale        = (M - m) / 65535
    min_log_prob = m - M - log sum exp(l - M)
    code         = round((l - m) / scale), 0 for l <= m

so that log p = scale code + min_log_prob up to scale/2 <= 1.3e-4, except for words less probable
than e^-16 times the first choice: these get the floor. All in float32, codes by a multiplication
with 1/scale and rounded to even, so that they are llama.cpp's to the bit.
"""

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

DEPTH = 16.0
"""Nats below the highest logit at which log probabilities are cut."""

HIGHEST = 65535
"""Of the codes."""


def record_type(n_vocab: int) -> np.dtype:
    """One position in the file: two float32, then the codes, padded to an even number."""
    return np.dtype(
        [
            ("scale", "<f4"),
            ("min_log_prob", "<f4"),
            ("codes", "<u2", (n_vocab,)),
            ("padding", "<u2", (n_vocab % 2,)),
        ]
    )


def encode(logits: Float32[Tensor, "tokens words"]) -> np.ndarray:
    """Records of finite logits (or -inf for some), one a position."""
    highest = logits.amax(1, keepdim=True)
    lowest = logits.amin(1, keepdim=True).maximum(highest - DEPTH)
    scale = (highest - lowest) / HIGHEST
    codes = ((logits - lowest) * (1 / scale)).round().clamp(max=HIGHEST)
    records = np.zeros(len(logits), record_type(logits.shape[1]))
    records["scale"] = scale[:, 0].cpu().numpy()
    records["min_log_prob"] = (lowest - highest - log_sum_exp(logits, highest))[:, 0].cpu().numpy()
    records["codes"] = codes.where(logits > lowest, 0).cpu().numpy()  # equal logits: scale is 0
    return records


def decode(records: np.ndarray) -> Float32[Tensor, "tokens words"]:
    """Log probabilities of records, on the CPU."""
    scale = torch.from_numpy(records["scale"].astype(np.float32))[:, None]
    lowest = torch.from_numpy(records["min_log_prob"].astype(np.float32))[:, None]
    return torch.from_numpy(records["codes"].astype(np.float32)).mul_(scale).add_(lowest)


def log_sum_exp(
    logits: Float32[Tensor, "tokens words"], highest: Float32[Tensor, "tokens 1"]
) -> Float32[Tensor, "tokens 1"]:
    """log sum exp(l - M): exp in float32, the sum in float64."""
    return (logits - highest).exp().sum(1, keepdim=True, dtype=torch.float64).log().float()
