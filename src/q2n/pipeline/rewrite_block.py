"""The stage that rewrites: scales move within the block, before anything of it is quantized.

    for junctions whose sums fit into memory together:
        measure          every batch runs through the block once
        for each one:    the rewrite finds s; source and readers take it; weights may be clamped.
                         A search may run windows through the block (module_loss.py)

In call order a linear is scaled as a reader before it is as a source, so each search sees the
weights that the block came with. What of it is no weight to quantize (norms, biases, routers) goes
into `norm_weights`, which are stored; and the full-precision stream, whose block stays the original
one, is compared at each site after its input is divided by `scales`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from q2n.grids.uniform import UniformGrid
from q2n.linalg.required_statistics import RequiredStatistics, bytes_of_sums
from q2n.linalg.statistics import InputStatistics
from q2n.models.attention_scores import feeds_scores
from q2n.models.junctions import Junction, Source
from q2n.pipeline.block_state import BlockState
from q2n.pipeline.channel_inputs import channel_statistics
from q2n.pipeline.module_loss import ModuleLoss
from q2n.pipeline.options import GIB, LoopOptions
from q2n.rewrites.rewrite import Loss, Reading, Rewrite


@dataclass(frozen=True)
class RewriteBlock:
    """Runs the quantized prefix's stream through the block, which is still the original one."""

    rewrite: Rewrite
    grid: UniformGrid | None
    """For a rewrite that searches."""
    options: LoopOptions

    def __call__(self, state: BlockState) -> BlockState:
        """Rewrite one block.

        Raises:
            NumericalError: NaN or Inf in a tensor or weight, with a layer's name.
        """
        usable = [x for x in state.junctions if self._moves(x) or self.rewrite.clips]
        state.say(f"{state.name}: {self.rewrite.name}")
        for together in self._parts(usable):
            gram = self.rewrite.searches
            found = channel_statistics(together, state.passes[0], self.options, gram=gram)
            for junction, statistics in zip(together, found, strict=True):
                if statistics.tokens:
                    state = self._rewritten(state, junction, statistics)
        fixed = {name for x in state.junctions if x.source is None for name in x.readers}
        left = tuple(state.full_name(name) for name in state.targets if name in fixed)
        return replace(state, facts=replace(state.facts, not_scaled=left))

    def _moves(self, junction: Junction) -> bool:
        """Whether the rewrite moves a scale here."""
        source = junction.source
        return source is not None and (source.kind == "norm" or self.rewrite.into_linears)

    def _parts(self, junctions: Sequence[Junction]) -> Iterator[list[Junction]]:
        """Neighbours whose sums fit into `expert_memory` together, one at least."""
        part: list[Junction] = []
        held = 0
        for junction in junctions:
            size = bytes_of_sums(RequiredStatistics.GRAM, junction.width) * self.rewrite.searches
            if part and held + size > self.options.expert_memory * GIB:
                yield part
                part, held = [], 0
            part, held = [*part, junction], held + size
        if part:
            yield part

    def _rewritten(
        self, state: BlockState, junction: Junction, statistics: InputStatistics
    ) -> BlockState:
        """The state after one junction."""
        names = [name for name in junction.readers if name in state.targets]
        full_name = state.full_name(names[0])
        statistics.require_finite(full_name)
        weights = [state.targets[name].weight() for name in names]
        reading = Reading(
            name=full_name,
            weights=weights,
            inputs=statistics,
            grid=self.grid,
            module_loss=self._module_loss(state, junction, names),
        )
        scale = torch.ones(junction.width, device=weights[0].device)
        if self._moves(junction):
            scale = junction.holdable(state.block, self.rewrite.scale(reading))
            state = _moved(state, junction, scale)
        for name in names if self.rewrite.clips else ():
            if not feeds_scores(name):
                target = state.targets[name]
                target.set(self.rewrite.clipped(reading, target.weight(), scale))
        return state

    def _module_loss(
        self, state: BlockState, junction: Junction, names: Sequence[str]
    ) -> Loss | None:
        """For what a norm gives; what a linear gives is read by the last one of a module."""
        windows = self.rewrite.judging_windows
        if not windows or junction.source is None or junction.source.kind != "norm":
            return None
        targets = [state.targets[name] for name in names]
        return ModuleLoss(state.passes[0], junction.module, targets, windows)


def _moved(state: BlockState, junction: Junction, scale: Float[Tensor, " width"]) -> BlockState:
    """The state after a scale has moved through a junction."""
    weights = {target.parameter for target in state.targets.values()}
    changed = dict(state.norm_weights)
    for name, value in junction.scaled(state.block, scale):
        state.block.get_parameter(name).copy_(value)
        if name not in weights:
            changed[name] = value
    scales = dict.fromkeys(junction.readers, scale)
    return replace(
        state,
        norm_weights=changed,
        scales={**state.scales, **scales},
        gradients=_after(state.gradients, junction.source, scale),
    )


def _after(
    gradients: Mapping[str, Float[Tensor, "out out"]],
    source: Source | None,
    scale: Float[Tensor, " width"],
) -> Mapping[str, Float[Tensor, "out out"]]:
    """The moments of gradients when a linear gives x / s by its last rows: a gradient there is s
    times what it was."""
    if source is None or source.module not in gradients:
        return gradients
    moments = gradients[source.module].to(scale)
    factors = moments.new_ones(len(moments))
    factors[-len(scale) :] = scale
    return {**gradients, source.module: moments * factors * factors.unsqueeze(1)}
