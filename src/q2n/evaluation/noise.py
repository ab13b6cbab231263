"""The reference against itself with noise: what a divergence is worth comparing with.

Two ways of computing the same model differ: in another dtype, on another machine, with another
kernel. A divergence that is not far above that is no loss of the quantization. Noise of a stated
relative size after every decoder block stands for such differences (exllamav3's qbench takes 2^-9,
half a unit in the last place of bfloat16).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from transformers import PreTrainedModel

from q2n.models.block_list import find_blocks


@contextmanager
def noisy_blocks(model: PreTrainedModel, relative: float, seed: int) -> Iterator[None]:
    """Multiply what each block returns by 1 + relative * n, n normal, element by element.

    Raises:
        InputError: the model has no list of decoder blocks.
    """
    generator = torch.Generator().manual_seed(seed)

    def disturb(_: nn.Module, __: Any, output: Any) -> Any:
        leaves, structure = pytree.tree_flatten(output)
        place = next(n for n, leaf in enumerate(leaves) if isinstance(leaf, Tensor))
        hidden = leaves[place]
        noise = torch.randn(hidden.shape, generator=generator).to(hidden.device, hidden.dtype)
        leaves[place] = hidden * (1 + relative * noise)
        return pytree.tree_unflatten(leaves, structure)

    hooks = [block.register_forward_hook(disturb) for block in find_blocks(model)[1]]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
