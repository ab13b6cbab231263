"""How a mixture spreads tokens over its experts.

Of a layer with E experts, of which each token takes the k with the largest logits: `f_e` is the
share of all (token, choice) pairs that went to expert e, `p_e` the mean probability that the router
gave it. The balancing loss E * sum_e f_e p_e of Switch Transformer (arXiv 2101.03961, equation 4)
is 1 when all experts are alike; only p has a gradient. It is taken of each layer alone:
transformers' own takes all layers together, where one layer's crowded expert hides behind another's
idle one.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def shares(logits: Float[Tensor, "tokens experts"], chosen: int) -> Float[Tensor, " experts"]:
    """f: shares of the choices, which sum to one."""
    counts = torch.bincount(logits.topk(chosen).indices.flatten(), minlength=logits.shape[1])
    return counts / counts.sum()


def balancing_loss(
    layers: Sequence[Float[Tensor, "tokens experts"]], chosen: int
) -> Float[Tensor, ""]:
    """The mean of E * sum_e f_e p_e over the layers; 0 where there are none."""
    losses = [
        logits.shape[1] * shares(logits, chosen) @ logits.float().softmax(-1).mean(0)
        for logits in layers
    ]
    return torch.stack(losses).mean() if losses else torch.zeros(())
