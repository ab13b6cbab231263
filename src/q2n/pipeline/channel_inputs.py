"""Statistics of the tensors at some junctions of a block, over all batches, in one run of each.

Nothing of the block is quantized meanwhile, so nothing pauses. What an expert hands to its last
matrix is seen of the tokens that its router sends it and, for the mean over all tokens to count as
`expert_shrinkage` of them, of evenly spaced others; with `all_experts` of all tokens.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from q2n.linalg.forward_products import forward_products
from q2n.linalg.required_statistics import RequiredStatistics
from q2n.linalg.statistics import InputStatistics
from q2n.models.experts import OneByOne, Stage, Wanted, Watcher
from q2n.models.junctions import Junction
from q2n.pipeline.expert_inputs import OneOfEach
from q2n.pipeline.options import LoopOptions
from q2n.pipeline.streams import StreamThroughBlock


def channel_statistics(
    junctions: Sequence[Junction],
    through: StreamThroughBlock,
    options: LoopOptions,
    *,
    gram: bool,
) -> list[InputStatistics]:
    """Of each junction.

    Args:
        through: a stream at the input of the block.
        gram: whether Gram matrices are wanted.
    """
    stream, block, device = through.stream, through.block.block, through.stream.hidden.device
    required = RequiredStatistics.GRAM if gram else RequiredStatistics.NONE
    required |= RequiredStatistics.SIZES
    found = [InputStatistics(x.width, required, device) for x in junctions]
    with _watched(block, junctions, found, options, stream.tokens):
        with forward_products(device):
            for batch in range(len(stream)):
                stream.inputs(batch, through.index).run(block)
    return found


@contextmanager
def _watched(
    block: nn.Module,
    junctions: Sequence[Junction],
    found: Sequence[InputStatistics],
    options: LoopOptions,
    tokens: int,
) -> Iterator[None]:
    """The junctions report to their statistics."""
    hooks, mixtures = [], dict[str, dict[int, InputStatistics]]()
    for junction, statistics in zip(junctions, found, strict=True):
        if junction.expert is not None:
            mixtures.setdefault(junction.watched, {})[junction.expert] = statistics
        else:
            module, keep = block.get_submodule(junction.watched), partial(_update, statistics)
            hooks.append(module.register_forward_pre_hook(keep, with_kwargs=True))
    experts = {module: module.watcher for module in block.modules() if isinstance(module, OneByOne)}
    for module in experts:
        module.watcher = None
    for name, of_experts in mixtures.items():
        watcher = _LastInputs(of_experts, options, tokens)
        setattr(block.get_submodule(name), "watcher", watcher)  # noqa: B010 - typed as a module
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for module, before in experts.items():
            module.watcher = before


def _update(
    statistics: InputStatistics, _: nn.Module, args: Any, kwargs: Mapping[str, Any]
) -> None:
    tensors = (x for x in (*args, *kwargs.values()) if isinstance(x, Tensor))
    statistics.update(next(x for x in tensors if x.is_floating_point()))


@dataclass(frozen=True)
class _LastInputs(Watcher):
    """Sees what experts of one mixture hand to their last matrices."""

    statistics: Mapping[int, InputStatistics]
    """By expert; of the others nothing is wanted."""
    options: LoopOptions
    tokens: int
    """Of the whole text."""

    def wanted(
        self, experts: OneByOne, routed: Sequence[Int[Tensor, " _"]], count: int
    ) -> list[Wanted]:
        weight = self.options.expert_shrinkage
        stride = max(1, int(self.tokens / weight)) if weight else 1
        others = OneOfEach([len(own) for own in routed], count, stride, routed[0].device)
        return [
            Wanted(
                self._tokens(own, others, expert) if expert in self.statistics else own[:0], None
            )
            for expert, own in enumerate(routed)
        ]

    def _tokens(
        self, routed: Int[Tensor, " own"], others: OneOfEach, expert: int
    ) -> Int[Tensor, " _"]:
        if self.options.all_experts:
            return torch.arange(others.count, device=routed.device)
        if self.options.expert_shrinkage == 0:
            return routed
        return torch.cat((routed, others.of(expert)))

    def ready(
        self, experts: OneByOne, stage: Stage, inputs: Mapping[int, Callable[[], Tensor]]
    ) -> None:
        for expert, get in inputs.items() if stage.down else ():
            self.statistics[expert].update(get())
