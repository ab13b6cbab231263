"""What reaches an expert, token by token, from what a whole model gives its fused experts."""

import torch
from torch.nn import functional


def inputs_of_experts(model, name, batches):
    """For each batch what fused experts are given: rows [tokens, hidden], choices [tokens, k]."""
    seen = []
    hook = model.get_submodule(name).register_forward_pre_hook(
        lambda _, args: seen.append((args[0].clone(), args[1].clone()))
    )
    with torch.no_grad():
        for batch in batches:
            model(input_ids=batch, use_cache=False)
    hook.remove()
    return seen


def hidden_of(experts, expert, rows):
    """What an expert of fused parameters hands to its down projection."""
    both = experts.gate_up_proj[expert].detach()
    half = len(both) // 2
    return functional.silu(rows @ both[:half].T) * (rows @ both[half:].T)


def routed_rows(seen, expert):
    """Rows of the tokens that chose the expert, one after another."""
    return torch.stack(
        [
            row
            for rows, choices in seen
            for row, chosen in zip(rows, choices.tolist(), strict=True)
            if expert in chosen
        ]
        or [seen[0][0][0] * 0]
    )


def sampled_rows(seen, expert, experts):
    """Rows of one of every s neighbours of each batch, s = experts / choices of a token: of the
    k-th s the one with the number (sum over experts of e n_e + expert + [s frac(k golden)]) mod s,
    of n_e tokens of the batch."""
    stride, found = experts // seen[0][1].shape[1], []
    for rows, choices in seen:
        begin = sum(e * sum(e in chosen for chosen in choices.tolist()) for e in range(experts))
        for start in range(0, len(rows), stride):
            moved = int(stride * (start // stride * 0.6180339887498949 % 1))
            token = start + (begin + expert + moved) % stride
            found += [rows[token]] if token < len(rows) else []
    return torch.stack(found), stride


def square(rows):
    """The sum of x x^T."""
    return rows.T @ rows
