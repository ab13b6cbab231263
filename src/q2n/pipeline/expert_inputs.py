"""Which tokens an expert's statistics are taken from.

A token reaches few of a mixture's experts. With T tokens of calibration text, n of them routed to
an expert, the Gram matrix of its inputs is that of the routed tokens, shrunk toward that of all:

    G = sum over routed tokens of x x^T  +  n0 * mean over all tokens of x x^T

The mean weighs n0 / (n + n0) of the total, so that an expert that hardly any token reached is
quantized by what it would see of the whole text, never by zeros. It is estimated from one of every
s tokens, another one for each expert, where s = experts / experts of a token: as many tokens as an
even share, and so at most as much work again in front of `down_proj`.

In the full-precision stream the same tokens count: those that the quantized prefix routes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil

import torch
from greenlet import getcurrent
from jaxtyping import Int
from torch import Tensor

from q2n.linalg.required_statistics import RequiredStatistics, bytes_of_sums
from q2n.models.experts import OneByOne, Stage, Wanted, Watcher
from q2n.pipeline.options import GIB
from q2n.pipeline.running_pass import RunningPass

_GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True)
class OneOfEach:
    """One token of every `stride` neighbours of a batch; `stride` experts see all tokens.

    Which one moves along the batch by the golden ratio, and from batch to batch by where its tokens
    go: most strides divide the length of a window, and some experts would see the first tokens of
    all windows, whose activations are like no others, and the other experts none of them."""

    routed: Sequence[int]
    """Tokens of the batch by expert."""
    count: int
    """All of them."""
    stride: int
    device: torch.device = torch.device("cpu")

    def of(self, expert: int) -> Int[Tensor, " sample"]:
        """Positions for one expert, in order, on the device."""
        runs, moved = self._runs
        tokens = runs + (moved + expert) % self.stride
        return tokens[tokens < self.count]

    @cached_property
    def _runs(self) -> tuple[Int[Tensor, " runs"], Int[Tensor, " runs"]]:
        """Where each `stride` neighbours begin, and how far the token of expert 0 is moved."""
        runs = torch.arange(ceil(self.count / self.stride))
        moved = (self.stride * (runs.double() * _GOLDEN).frac()).long()
        begin = sum(number * own for number, own in enumerate(self.routed))
        return (runs * self.stride).to(self.device), (begin + moved).to(self.device)


@dataclass(frozen=True)
class ExpertSampling:
    """How tokens are chosen."""

    shrinkage: float
    """n0, in tokens."""
    all_experts: bool
    """Whether each expert's statistics are those of all tokens alike, routed or not."""
    tokens: int
    """Of the whole text."""

    def of(self, routed: Int[Tensor, " own"], others: OneOfEach, expert: int) -> Wanted:
        """The tokens of a batch that one expert's statistics are taken from."""
        if self.all_experts:
            return Wanted(torch.arange(others.count, device=routed.device), None)
        if self.shrinkage == 0:
            return Wanted(routed, None)
        sample, stride = others.of(expert), others.stride
        weight = self.shrinkage * stride / self.tokens
        factor = torch.ones(len(routed) + len(sample), device=routed.device)
        factor[len(routed) :] = weight**0.5
        tokens, order = torch.sort(torch.cat((routed, sample)), stable=True)
        return Wanted(tokens, factor[order])


@dataclass(frozen=True)
class ExpertInputs(Watcher):
    """Has the running pass pause at the sites of one mixture's experts."""

    name: str
    positions: Mapping[tuple[int, bool], int]
    """(expert, whether `down_proj` reads it) -> position of the site."""
    sampling: ExpertSampling

    def wanted(
        self, experts: OneByOne, routed: Sequence[Int[Tensor, " _"]], count: int
    ) -> list[Wanted] | None:
        running = getcurrent()
        if not isinstance(running, RunningPass) or running.position >= max(self.positions.values()):
            return None
        running.routed[self.name] = routed
        if running.leader is not None:
            routed = running.leader.routed[self.name]
        total = sum(map(len, routed))
        stride = max(1, experts.num_experts * count // max(total, 1))
        others = OneOfEach([len(own) for own in routed], count, stride, routed[0].device)
        return [self.sampling.of(own, others, expert) for expert, own in enumerate(routed)]

    def ready(
        self, experts: OneByOne, stage: Stage, inputs: Mapping[int, Callable[[], Tensor]]
    ) -> None:
        running = getcurrent()
        assert isinstance(running, RunningPass)
        for expert, get in inputs.items():
            position = self.positions.get((expert, stage.down), -1)
            if position > running.position:
                running.pause(position, get(), len(running.routed[self.name][expert]))


def group_size(experts: OneByOne, required: RequiredStatistics, memory: float) -> int:
    """How many experts' sums fit into `memory` GiB, at least one."""
    widths = experts.get_submodule("0.up_proj"), experts.get_submodule("0.down_proj")
    width = max(module.get_parameter("weight").shape[1] for module in widths)
    size = max(bytes_of_sums(required, width), 1)
    return min(max(int(memory * GIB // size), 1), experts.num_experts)
