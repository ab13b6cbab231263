"""Linears of decoder blocks that stay in full precision for what they are, not for their size.

Facts of the modules decide, and a table where these cannot tell:

- a matrix that several blocks share (Zamba 2 runs one transformer block at many depths) has not
  one input but one per depth, and is one tensor in the files;
- a subclass of a linear with a product of its own (DeepSeek-V4's by groups of heads) is no target;
- a Mamba mixer takes the weight of its `dt_proj` and never calls the module, so that nothing is
  seen of its input;
- a router, whose choice decides which weights a token meets at all, is a few rows of its block;
- the gates and steps of a linear attention, a few rows per head, steer its recurrence: errors in
  them are not of one token but of all that follow. Other quantizers leave them out too.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from q2n.models.experts import routers
from q2n.models.targets import other_linears, targets_in
from q2n.patterns import listed


@dataclass(frozen=True)
class _Role:
    """Linears known by their names and by what lies beside them."""

    names: tuple[str, ...]
    beside: str
    """A module in the same parent."""
    why: str


_ROLES = (
    _Role(("dt_proj",), "x_proj", "their mixer takes the weight and never calls them"),
    _Role(("in_proj_ba", "in_proj_b", "in_proj_a"), "conv1d", "gates and steps of a recurrence"),
    _Role(("shared_expert_gate",), "shared_expert", "gates of shared experts"),
)
_ROUTER = "they choose among experts"
_SHARED = "several blocks share them"
_OTHER = "their product is not a linear's"


def kept_targets(blocks: Mapping[str, nn.Module]) -> dict[str, str]:
    """Full names of the linears that stay in full precision for their role -> why.

    Args:
        blocks: by full name.
    """
    shared = shared_parameters(blocks)
    kept: dict[str, str] = {}
    for prefix, block in blocks.items():
        modules, targets = dict(block.named_modules()), targets_in(block)
        kept |= {
            f"{prefix}.{name}": _SHARED
            for name, target in targets.items()
            if f"{prefix}.{target.parameter}" in shared
        }
        kept |= {f"{prefix}.{name}": _OTHER for name in other_linears(block)}
        kept |= {f"{prefix}.{name}": _ROUTER for name in routers(block) & targets.keys()}
        for name in targets:
            parent, _, last = name.rpartition(".")
            kept |= {
                f"{prefix}.{name}": role.why
                for role in _ROLES
                if last in role.names and hasattr(modules[parent], role.beside)
            }
    return kept


def kept_note(kept: Mapping[str, str], blocks: str) -> str | None:
    """A sentence on them, without a full stop; None if there are none.

    Args:
        blocks: name of the list of blocks.
    """
    number = re.compile(rf"^{re.escape(blocks)}\.\d+\.")
    kinds: dict[str, dict[str, None]] = {}
    for name, why in kept.items():
        kinds.setdefault(why, {})[number.sub(f"{blocks}.*.", name)] = None
    told = [f"{listed([*names])} ({why})" for why, names in kinds.items()]
    return f"Layers that stay in full precision: {'; '.join(told)}" if told else None


def shared_parameters(blocks: Mapping[str, nn.Module]) -> set[str]:
    """Full names of the parameters that are another block's too: no run changes them, for what one
    block makes of them the other one would have to read.

    Args:
        blocks: by full name.
    """
    users: dict[int, list[tuple[str, str]]] = {}
    for prefix, block in blocks.items():
        for name, parameter in block.named_parameters(remove_duplicate=False):
            users.setdefault(id(parameter), []).append((prefix, name))
    several = [found for found in users.values() if len({prefix for prefix, _ in found}) > 1]
    return {f"{prefix}.{name}" for found in several for prefix, name in found}
