"""Which targets of a block read the same tensor, found by watching one run.

Targets that receive the very same tensor (q, k, v; gate, up) form one site and share
one set of input statistics. Sites in call order are the rounds of true-sequential
quantization, for any architecture and with no table of names. Sites of experts that are computed
together (experts.py) are one round.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Int
from torch import Tensor, nn

from q2n.models.calls import BlockInput, BlockOutput
from q2n.models.experts import (
    OneByOne,
    Stage,
    Wanted,
    Watcher,
    experts_in,
    readers,
)
from q2n.models.hooked import run_hooked
from q2n.models.targets import Target


@dataclass(frozen=True)
class Site:
    """One input tensor of a block and the targets that read it, in call order."""

    targets: tuple[str, ...]
    """Their names in the block."""
    width: int
    """Columns of these targets: the size of their input."""
    stage: tuple[str, Stage] | None = None
    """Of an expert: the name of the experts, and which of its sites are measured together."""
    expert: int | None = None
    stream: str | None = None
    """The module that is given the residual stream to which the output of the only target is added,
    as it is before (residual_streams.py); empty: the block itself. None: it is added to none."""


def find_sites(
    block: nn.Module,
    targets: Mapping[str, Target],
    probe: BlockInput,
) -> list[Site]:
    """Run the block once on a (short) probe and group its targets by input, in call order. Every
    token is shown to every expert.

    Args:
        targets: those that matter, by their names in the block.

    A target that is never called is in no site.
    """
    received, _ = inputs_of(block, targets, probe)
    groups: list[tuple[Received, list[str]]] = []
    for name, one in received.items():
        names = next((names for seen, names in groups if _same(seen.tensor, one.tensor)), None)
        if names is None:
            groups.append((one, [name]))
        else:
            names.append(name)
    return [
        Site(tuple(names), one.tensor.shape[-1], one.stage, one.expert) for one, names in groups
    ]


def inputs_of(
    block: nn.Module, targets: Mapping[str, Target], probe: BlockInput
) -> tuple[dict[str, "Received"], BlockOutput]:
    """What each target is given first in one run of the block, by name and in call order, and what
    the block makes of the probe. Every token is shown to every expert."""
    received: dict[str, Received] = {}
    experts = dict(experts_in(block))
    hooks = [
        target.module.register_forward_pre_hook(partial(_keep_first, received, name))
        for name, target in targets.items()
        if target.experts is None
    ]
    for name, module in experts.items():
        module.watcher = _Probe(name, targets, received)
    try:
        with torch.no_grad():
            output = run_hooked(block, probe, hooks)
    finally:
        for module in experts.values():
            module.watcher = None
    return received, output


def one_stage(sites: Sequence[Site]) -> bool:
    """Whether none of the sites reads what a target of another one computes."""
    return len(sites) == 1 or (sites[0].stage is not None and len({x.stage for x in sites}) == 1)


@dataclass(frozen=True)
class Received:
    """What a target was given first."""

    tensor: Tensor
    stage: tuple[str, Stage] | None = None
    expert: int | None = None


@dataclass(frozen=True)
class _Probe(Watcher):
    """Has every token shown to every expert."""

    name: str
    targets: Collection[str]
    received: dict[str, Received]

    def wanted(
        self, experts: OneByOne, routed: Sequence[Int[Tensor, " _"]], count: int
    ) -> list[Wanted]:
        every = torch.arange(count, device=routed[0].device)
        return [Wanted(every, None)] * experts.num_experts

    def ready(
        self, experts: OneByOne, stage: Stage, inputs: Mapping[int, Callable[[], Tensor]]
    ) -> None:
        for expert, get in inputs.items():
            one = Received(get(), (self.name, stage), expert)
            for reader in readers(experts, self.name, expert, stage):
                if reader in self.targets:
                    self.received.setdefault(reader, one)


def _keep_first(
    received: dict[str, Received], name: str, _: nn.Module, args: tuple[Tensor]
) -> None:
    received.setdefault(name, Received(args[0]))


def _same(a: Tensor, b: Tensor) -> bool:
    """One tensor, or two views of the same numbers. `received` keeps all alive, so an
    address is never reused."""
    return a is b or (
        a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.stride() == b.stride()
    )
