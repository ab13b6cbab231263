"""OmniQuant's quantizer and its fit of a block as its released code has them, in plain autograd."""

import torch
from torch.func import functional_call


def round_ste(x):
    return (x.round() - x).detach() + x


def fake_quant(weight, low, high, bits, group_size, symmetric=False):
    """The weight rounded per group with learned clipping, by logits `low`, `high` [out, groups].

    The even range of `symmetric`, with both its ends clipped, is this package's.
    """
    rows, columns = weight.shape
    x = weight.reshape(-1, group_size)
    lo, hi = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    if symmetric:
        hi = torch.maximum(-lo, hi)
        lo = -hi
    hi, lo = torch.sigmoid(high.reshape(-1, 1)) * hi, torch.sigmoid(low.reshape(-1, 1)) * lo
    scale = ((hi - lo) / (2**bits - 1)).clamp(min=1e-5, max=1e4)
    zero = 2 ** (bits - 1) if symmetric else (-lo / scale).clamp(min=-1e4, max=1e4).round()
    codes = (round_ste(x / scale) + zero).clamp(0, 2**bits - 1)
    return ((codes - zero) * scale).reshape(rows, columns)


def fit_block(block, weights, inputs, full, own, bits, group_size, epochs, rate):
    """Logits (low, high) of each weight after OmniQuant's loop, and the loss of every step.

    Args:
        weights: by the parameter's name in the block.
        inputs: a call of the block with given parameters, `run(function)`, for each window.
        full, own: outputs to reach, for each window; `own` may be None.
    """
    logits = {
        name: torch.full((2, len(x), x.shape[1] // group_size), 4.0, requires_grad=True)
        for name, x in weights.items()
    }
    optimizer = torch.optim.AdamW(list(logits.values()), lr=rate, weight_decay=0)
    losses = []
    for _ in range(epochs):
        for number, run in enumerate(inputs):
            changed = {
                name: fake_quant(x, *logits[name], bits, group_size) for name, x in weights.items()
            }
            output = run(lambda *a, changed=changed, **k: functional_call(block, changed, a, k))
            loss = (output - full[number]).square().mean()
            if own is not None:
                loss = loss + (output - own[number]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    return {name: tuple(x.detach()) for name, x in logits.items()}, losses
