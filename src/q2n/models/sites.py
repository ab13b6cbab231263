"""Which targets of a block read the same tensor, found by watching one run.

Targets that receive the very same tensor (q, k, v; gate, up) form one site and share
one set of input statistics. Sites in call order are the rounds of true-sequential
quantization, for any architecture and with no table of names.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from q2n.models.calls import BlockInput
from q2n.models.running import running
from q2n.models.targets import Target


@dataclass(frozen=True)
class Site:
    """One input tensor of a block and the targets that read it, in call order."""

    targets: tuple[str, ...]
    """Their names in the block."""
    width: int
    """Columns of these targets: the size of their input."""


def find_sites(
    block: nn.Module,
    targets: Mapping[str, Target],
    probe: BlockInput,
) -> list[Site]:
    """Run the block once on a (short) probe and group its targets by input, in call order.

    Args:
        targets: those that matter, by their names in the block.

    A target that is never called is in no site.
    """
    received: dict[str, Tensor] = {}
    hooks = [
        target.module.register_forward_pre_hook(partial(_keep_first, received, name))
        for name, target in targets.items()
    ]
    try:
        with torch.no_grad(), running(type(block).__name__):
            probe.run(block)
    finally:
        for hook in hooks:
            hook.remove()
    groups: list[tuple[Tensor, list[str]]] = []
    for name, tensor in received.items():
        names = next((names for seen, names in groups if _same(seen, tensor)), None)
        if names is None:
            groups.append((tensor, [name]))
        else:
            names.append(name)
    return [Site(tuple(names), tensor.shape[-1]) for tensor, names in groups]


def _keep_first(received: dict[str, Tensor], name: str, _: nn.Module, args: tuple[Tensor]) -> None:
    received.setdefault(name, args[0])


def _same(a: Tensor, b: Tensor) -> bool:
    """One tensor, or two views of the same numbers. `received` keeps all alive, so an
    address is never reused."""
    return a is b or (
        a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.stride() == b.stride()
    )
