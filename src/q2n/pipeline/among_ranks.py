"""The stages of a round where there are several ranks.

    assign      who solves which target, by what they cost (distributed/assignment.py)
    measure     each rank its windows; the sums go to the ranks that solve something of the site
    quantize    each rank its targets; the results go to all

Sums travel as they are, in float64, of the Gram matrix the upper triangle alone; numbers of tokens
travel before, of all sites at once. Both are exact enough that any number of ranks comes to the
bits of one (linalg/statistics.py). Between the stages a rank's state differs from the
others' in `statistics` and `layers`; after them only the statistics that the method used were
anyone's own, and they are gone.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch

from q2n.distributed.assignment import SiteCost, assign
from q2n.distributed.ranks import Ranks
from q2n.layers.quantized import QuantizedLinear
from q2n.linalg.statistics import InputStatistics
from q2n.pipeline.block_state import BlockState
from q2n.pipeline.layer_bytes import from_bytes, to_bytes
from q2n.pipeline.measure import Measure, usable
from q2n.pipeline.quantize import Quantize


@dataclass(frozen=True)
class Assign:
    """Says which rank solves each target of the round."""

    ranks: Ranks

    def __call__(self, state: BlockState) -> BlockState:
        sites = [state.sites[position] for position in state.round]
        costs = [
            SiteCost.of(site.width, [state.targets[name].shape[0] for name in site.targets])
            for site in sites
        ]
        chosen = assign(costs, self.ranks.size)
        owners = {
            name: rank
            for site, ranks in zip(sites, chosen, strict=True)
            for name, rank in zip(site.targets, ranks, strict=True)
        }
        return replace(state, owners=owners)


@dataclass(frozen=True)
class MeasureAmongRanks:
    """Measures the windows of this rank and adds those of the others where they are needed."""

    measure: Measure
    ranks: Ranks

    def __call__(self, state: BlockState) -> BlockState:
        """Measure one round. Raises as `Measure`, and `RankError` when another rank has ended."""
        state = self.measure.sums(state)
        statistics, counts = state.statistics, self._counts(state)
        kept: dict[int, InputStatistics] = {}
        for site in state.round:
            owners = {state.owners[name] for name in state.sites[site].targets}
            if sum(counts[site]):  # else there is nothing to add up: no rank's text reached it
                self._add(statistics[site], owners)
            statistics[site].set_counts(counts[site][1:])
            if self.ranks.rank in owners:
                kept[site] = statistics[site]
        reached = {site: counts[site][0] for site in state.round}
        return usable(replace(state, statistics=kept, reached={**state.reached, **reached}))

    def _counts(self, state: BlockState) -> dict[int, list[int]]:
        """For each site the tokens of all ranks that reach it, and the counts of its statistics."""
        mine = [[state.reached[site], *state.statistics[site].counts()] for site in state.round]
        total = torch.tensor(mine, device=self.measure.device)
        self.ranks.add_everywhere(total)
        return dict(zip(state.round, total.tolist(), strict=True))

    def _add(self, statistics: InputStatistics, owners: set[int]) -> None:
        """Add up the sums of one site, for its owners."""
        for part in statistics.sums():
            if len(owners) == 1:
                self.ranks.add_at(part, *owners)
            else:
                self.ranks.add_everywhere(part)


@dataclass(frozen=True)
class QuantizeAmongRanks:
    """Quantizes the targets of this rank and takes over those of the others."""

    quantize: Quantize
    ranks: Ranks
    device: torch.device

    def __call__(self, state: BlockState) -> BlockState:
        """Quantize one round. Raises as `Quantize`, and `RankError` when another rank has ended."""
        before, everything = state.layers, dict(state.owners)
        own = {name for name, rank in everything.items() if rank == self.ranks.rank}
        state = self.quantize(state, own)
        layers = self._exchanged(state, {name: state.layers[name] for name in own})
        in_order = {name: layers[name] for name in everything}
        return replace(state, layers={**before, **in_order})

    def _exchanged(
        self, state: BlockState, own: Mapping[str, QuantizedLinear]
    ) -> dict[str, QuantizedLinear]:
        """All layers of the round; those of others become the weights of their targets."""
        layers = dict(own)
        for data in self.ranks.gather(to_bytes(own) if own else b""):
            for name, layer in (from_bytes(data) if data else {}).items():
                if name not in own:
                    layers[name] = layer.to(self.device)
                    state.targets[name].set(layers[name].dequantize())
        return layers


def read_by_first(
    ranks: Ranks, read: Callable[[], Mapping[str, QuantizedLinear]]
) -> Mapping[str, QuantizedLinear]:
    """The layers of a finished block on every rank; the first one reads them."""
    if not ranks.are_several:
        return read()
    return from_bytes(ranks.gather(to_bytes(read()) if ranks.is_first else b"")[0])
