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
    """A sentence on the matrices of the blocks that are not quantized, by the classes that hold
    them; None where targets cover all but one in a hundred of the blocks' weights."""
    covered = {id(target.module) for target in targets_in(blocks).values()}
    held = Counter[str]()
    for module in blocks.modules():
        if id(module) not in covered:
            held[type(module).__name__] += _matrix_entries(module)
    total = sum(parameter.numel() for parameter in blocks.parameters())
    left = {name: count for name, count in held.items() if count > _WORTH_SAYING * total}
    if not left:
        return None
    kind = "Experts" if any("expert" in name.lower() for name in left) else "Matrices"
    return (
        f"{kind} are not quantized: {', '.join(left)} {'hold' if len(left) > 1 else 'holds'} "
        f"{sum(left.values()) / total:.0%} of the decoder blocks' weights, and bits per weight "
        "speak of the others alone"
    )


def _matrix_entries(module: nn.Module) -> int:
    """Weights in the module's own parameters of two dimensions or more."""
    own = module.parameters(recurse=False)
    return sum(parameter.numel() for parameter in own if parameter.ndim > 1)
