"""What no target covers in decoder blocks: matrices that stay in full precision without a choice.

The experts of a mixture lie in 3-D parameters, `[experts, out, in]`, and only 2-D ones are
quantized. Whoever reads "3 bits per weight" must know how much of the model that is about.
"""

from collections import Counter

from torch import nn

from q2n.models.targets import targets_in

_WORTH_SAYING = 0.01
"""Share of the blocks' weights."""


def uncovered_note(blocks: nn.ModuleList) -> str | None:
    """A sentence on the experts of the blocks, and on other matrices that no target covers if they
    hold more than one in a hundred of the weights; by the classes that hold them. None if there
    are none."""
    covered = {id(target.module) for target in targets_in(blocks).values()}
    held = Counter[str]()
    for module in blocks.modules():
        if id(module) not in covered:
            held[type(module).__name__] += _matrix_entries(module)
    total = sum(parameter.numel() for parameter in blocks.parameters())
    left = [
        name
        for name, count in held.items()
        if count > _WORTH_SAYING * total or (count and "experts" in name.lower())
    ]
    if not left:
        return None
    experts = [name for name in left if "experts" in name.lower()]
    kinds = [*(["the experts"] if experts else []), *(["some matrices"] if experts != left else [])]
    what, share = " and ".join(kinds), sum(held[name] for name in left) / total
    return (
        f"{what[0].upper()}{what[1:]} are not quantized ({', '.join(left)}): they hold {share:.0%} "
        "of the decoder blocks' weights, and bits per weight speak of the others alone"
    )


def _matrix_entries(module: nn.Module) -> int:
    """Weights in the module's own parameters of two dimensions or more."""
    own = module.parameters(recurse=False)
    return sum(parameter.numel() for parameter in own if parameter.ndim > 1)
