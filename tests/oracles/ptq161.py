"""PTQ1.61's quantizer, loss and fit of a block as its released code has them, in plain autograd."""

import torch
from torch.func import functional_call


def salient_columns(sizes, fraction=0.2):
    """Channels at least as large as the one at index floor(fraction m) of the sorted ones."""
    sizes = sizes.clamp(min=1e-5)
    return sizes >= sizes.sort(descending=True).values[int(fraction * len(sizes))]


def row_grid(weight, bits=4):
    """The weight on the asymmetric min-max grid of each whole row."""
    lo, hi = weight.amin(1, keepdim=True), weight.amax(1, keepdim=True)
    scale = (hi - lo) / (2**bits - 1)
    zero = (-lo / scale).round()
    return scale * ((weight / scale).round().add(zero).clamp(0, 2**bits - 1) - zero)


def row_values(weight, salient):
    """mu and a of every row, over entries of other columns that are not 0."""
    means, sizes = [], []
    for row in weight:
        low = [float(w) for w, s in zip(row, salient, strict=True) if not s and w != 0]
        means.append(sum(low) / len(low))
        sizes.append(sum(map(abs, low)) / len(low))
    return torch.tensor(means), torch.tensor(sizes)


def dense(weight, salient, mean, magnitude, row, column):
    """The quantized weight; `column` has an entry for every column."""
    signs = torch.sign(weight - mean[:, None])
    low = row[:, None] * column * (magnitude[:, None] * signs + mean[:, None])
    return torch.where(salient, row_grid(weight), low)


def loss(output, targets):
    """The block's loss at both targets."""
    total = 0.0
    for target in targets:
        total = total + (output - target).square().mean()
        cosine = torch.nn.CosineSimilarity(dim=2)(output, target)
        total = total - torch.log(cosine.mean().abs())
    return total


def fit_block(block, weights, salient, inputs, full, own, epochs, rates):
    """Quantized weights after the fit.

    Args:
        weights, salient: by the parameter's name in the block.
        inputs: a call of the block with given parameters, `run(function)`, for each window.
        full, own: outputs to reach, for each window.
        rates: of magnitudes, and of factors.
    """
    values = {}
    for name, weight in weights.items():
        mean, magnitude = row_values(weight, salient[name])
        parts = magnitude, torch.ones(len(weight)), torch.ones(weight.shape[1])
        values[name] = mean, [x.clone().requires_grad_() for x in parts]
    magnitudes = [parts[0] for _, parts in values.values()]
    factors = [x for _, parts in values.values() for x in parts[1:]]
    groups = [{"params": magnitudes, "lr": rates[0]}, {"params": factors, "lr": rates[1]}]
    optimizer = torch.optim.AdamW(groups, weight_decay=0)

    def rounded():
        return {
            name: dense(weight, salient[name], values[name][0], *values[name][1])
            for name, weight in weights.items()
        }

    for _ in range(epochs):
        for number, run in enumerate(inputs):
            changed = rounded()
            output = run(lambda *a, changed=changed, **k: functional_call(block, changed, a, k))
            optimizer.zero_grad()
            loss(output, [full[number], own[number]]).backward()
            optimizer.step()
    return {name: weight.detach() for name, weight in rounded().items()}
