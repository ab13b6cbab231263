"""What no target covers in decoder blocks: matrices that stay in full precision without a choice.

Most experts of a mixture are taken apart into linears (experts.py). Where a model keeps its experts
otherwise, most of it would be left as it is; that is refused unless the user asks for it. Whoever
reads "3 bits per weight" must know how much of the model that is about.
"""

from collections import Counter
from collections.abc import Callable

from torch import nn

from q2n.errors import InputError
from q2n.models.targets import targets_in

_WORTH_SAYING = 0.01
"""Share of the blocks' weights."""


def uncovered_modules(root: nn.Module) -> dict[str, int]:
    """Names of modules whose matrices no target covers -> the number of weights in them."""
    covered = {id(target.module) for target in targets_in(root).values()}
    held = {
        name: _matrix_entries(module)
        for name, module in root.named_modules()
        if id(module) not in covered
    }
    return {name: count for name, count in held.items() if count}


def require_known_experts(
    root: nn.Module, uncovered: dict[str, int], ignored: Callable[[str], bool]
) -> None:
    """Refuse experts that are kept in a layout that is not known here.

    Args:
        uncovered: as `uncovered_modules` gives them for `root`, by names that `ignored` knows.

    Raises:
        InputError: naming one.
    """
    for name in uncovered:
        kind = type(root.get_submodule(name)).__name__
        if "experts" in kind.lower() and not ignored(name):
            raise InputError(
                f"{name}: {kind} keeps its experts in a layout that is not known here, and nothing "
                "of them would be quantized; to add it, see models/expert_parts.py, or leave them "
                f"in full precision with --ignore '*{name.rpartition('.')[2]}*'"
            )


def uncovered_note(blocks: nn.ModuleList) -> str | None:
    """A sentence on matrices that no target covers, by the classes that hold them, if these hold
    more than one in a hundred of the blocks' weights; None if there are none."""
    held = Counter[str]()
    for name, count in uncovered_modules(blocks).items():
        held[type(blocks.get_submodule(name)).__name__] += count
    total = sum(parameter.numel() for parameter in blocks.parameters())
    left = {name: count for name, count in held.items() if count > _WORTH_SAYING * total}
    if not left:
        return None
    return (
        f"Some matrices are not quantized ({', '.join(left)}): they hold "
        f"{sum(left.values()) / total:.0%} of the decoder blocks' weights, and bits per weight "
        "speak of the others alone"
    )


def _matrix_entries(module: nn.Module) -> int:
    """Weights in the module's own parameters of two dimensions or more."""
    own = module.parameters(recurse=False)
    return sum(parameter.numel() for parameter in own if parameter.ndim > 1)
