"""llama.cpp's divergence from its definition: numpy, one word or token at a time."""

import math
import struct

import numpy as np


def record(logits):
    """One position in the file, word by word in float32."""
    one = np.float32
    high, low = max(logits), max(min(logits), max(logits) - one(16))
    total = sum(float(np.exp(one(x - high))) for x in logits)
    scale = one((high - low) / one(65535))
    lowest = one(one(low - high) - one(math.log(total)))
    codes = [0] * len(logits)
    for i, x in enumerate(logits):
        if scale > 0 and x > low:
            codes[i] = round(float(one(one(1) / scale) * one(x - low)))  # half to even
    codes += [0] * (len(codes) % 2)
    return struct.pack(f"<ff{len(codes)}H", scale, lowest, *codes)


def read_record(data, words):
    """Its log probabilities in float64."""
    scale, lowest, *codes = struct.unpack(f"<ff{(words + 1) // 2 * 2}H", data)
    return [scale * code + lowest for code in codes[:words]]


def token(log_p_base, logits, target):
    """nll, nll_base, kl, same_top and dp of one token in float64."""
    high = max(logits)
    log_z = high + math.log(math.fsum(math.exp(x - high) for x in logits))
    kl = math.fsum(
        math.exp(b) * (b - (x - log_z)) for b, x in zip(log_p_base, logits, strict=True) if b > -16
    )
    nll, nll_base = log_z - logits[target], -log_p_base[target]
    same = int(np.argmax(logits)) == int(np.argmax(log_p_base))
    return nll, nll_base, kl, same, math.exp(-nll) - math.exp(-nll_base)


def statistics(nll, nll_base, kl, same_top, dp):
    """What is printed, by (label, column), from float64 arrays; spread and covariance by numpy."""
    n = len(nll)
    cov = np.cov([nll, nll_base], ddof=0) / (n - 1)
    ppl, base = math.exp(nll.mean()), math.exp(nll_base.mean())
    # Gradients of ln PPL - ln PPL_base and PPL - PPL_base after the two means.
    along = {"log": np.array([1, -1]), "difference": np.array([ppl, -base])}
    error = {name: math.sqrt(g @ cov @ g) for name, g in along.items()}
    rms = math.sqrt((dp**2).mean())
    share = same_top.mean()
    return {
        "ppl": (ppl, ppl * math.sqrt(cov[0, 0])),
        "ppl_base": (base, base * math.sqrt(cov[1, 1])),
        "correlation": np.corrcoef(nll, nll_base)[0, 1],
        "log_ratio": (math.log(ppl / base), error["log"]),
        "ratio": (ppl / base, ppl / base * error["log"]),
        "difference": (ppl - base, error["difference"]),
        "kl": (kl.mean(), kl.std() / math.sqrt(n - 1)),
        "dp": (dp.mean(), dp.std() / math.sqrt(n - 1)),
        "rms_dp": (rms, (dp**2).std() / math.sqrt(n - 1) / (2 * rms)),
        "same_top": (share, math.sqrt(share * (1 - share) / (n - 1))),
    }
