"""One block on its way through the stages of the loop."""

from collections.abc import Callable, Collection, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import chain

from jaxtyping import Float
from torch import Tensor, nn

from q2n.grids.learned_range import Clipping
from q2n.layers.quantized import QuantizedLinear
from q2n.linalg.required_statistics import RequiredStatistics
from q2n.linalg.statistics import InputStatistics
from q2n.models.blocks import BlockwiseModel
from q2n.models.experts import experts_in
from q2n.models.junction_search import find_junctions
from q2n.models.junctions import Junction
from q2n.models.residual_streams import with_streams
from q2n.models.sites import Site, find_sites
from q2n.models.targets import Target
from q2n.pipeline.expert_inputs import ExpertSampling, group_size
from q2n.pipeline.facts import BlockFacts
from q2n.pipeline.options import LoopOptions
from q2n.pipeline.passes import PausingBlock
from q2n.pipeline.streams import Probe, Stream, StreamThroughBlock


@dataclass(frozen=True, kw_only=True, eq=False)
class BlockState:
    """What a stage is given and, with its own part replaced, hands on.

    Names of targets and norms are those in the block; `full_name` makes full ones of them.
    """

    index: int
    name: str
    """Full name of the block."""
    is_last: bool
    block: nn.Module
    """The block in memory, which takes every weight as soon as it is quantized."""
    targets: Mapping[str, Target]
    """The matrices of `block` to quantize."""
    shared: Collection[str] = ()
    """Parameters of `block` that are another block's too, and stay as they are."""
    sites: Sequence[Site]
    """The inputs that they read, in call order."""
    passes: Sequence[StreamThroughBlock]
    """The streams inside the block: that of the quantized prefix, which runs through `block`, then
    that of the full-precision model where one is needed. None without calibration text."""
    say: Callable[[str], None]
    """Tells people what is being done."""
    round: Sequence[int] = ()
    """Positions of the sites that are measured and quantized now."""
    statistics: Mapping[int, InputStatistics] = field(default_factory=dict)
    """Of these sites' inputs, by position; empty for a method that needs none."""
    reached: Mapping[int, int] = field(default_factory=dict)
    """Tokens of the text that reached each site measured so far; of an expert, those routed."""
    owners: Mapping[str, int] = field(default_factory=dict)
    """The rank that quantizes each target of the round, where there are several ranks."""
    gradients: Mapping[str, Float[Tensor, "out out"]] = field(default_factory=dict)
    """Second moments of the gradients at the targets' outputs, for a method that reads them."""
    clipping: Mapping[str, Clipping] = field(default_factory=dict)
    """Shares of the ranges of the targets' grids, where they were learned."""
    layers: Mapping[str, QuantizedLinear] = field(default_factory=dict)
    """What is quantized so far."""
    norm_weights: Mapping[str, Float[Tensor, "..."]] = field(default_factory=dict)
    """Parameters that are no longer the original ones and are not quantized: those of norms and,
    after a rewrite, biases, routers, linears that stay in full precision."""
    junctions: Sequence[Junction] = ()
    """Where scales can move, if there is a rewrite."""
    scales: Mapping[str, Float[Tensor, " _"]] = field(default_factory=dict)
    """By what a rewrite has divided the input of a reader."""
    facts: BlockFacts

    def full_name(self, name: str) -> str:
        """Name in the model of a module or parameter of the block."""
        return f"{self.name}.{name}"


BlockStage = Callable[[BlockState], BlockState]
"""One step of a block's turn."""


def enter_block(
    model: BlockwiseModel,
    index: int,
    streams: Sequence[Stream],
    probe: Probe,
    say: Callable[[str], None],
    *,
    options: LoopOptions,
    required: RequiredStatistics,
    rewritten: bool = False,
) -> BlockState:
    """A block at the start of its turn: loaded, once more for each further stream, and its sites
    looked up while its weights are the original ones; its junctions too if it is `rewritten`."""
    name, block = model.block_name(index), model.load_block(index)
    originals = [deepcopy(block) for _ in streams[1:]]
    for _, experts in chain.from_iterable(map(experts_in, (block, *originals))):
        experts.group_size = group_size(experts, required, options.expert_memory)
    sampling = ExpertSampling(
        options.expert_shrinkage, options.all_experts, streams[0].tokens if streams else 1
    )
    targets, ignored = model.targets_of(index, block)
    sites = find_sites(block, targets, probe.at(index))
    if options.stream_share and RequiredStatistics.CROSS in required:
        sites = with_streams(block, sites, probe.at(index))
    junctions: Sequence[Junction] = ()
    shared = model.shared_in(index)
    if rewritten:
        junctions = find_junctions(block, targets, probe.at(index), shared)
    probe.advance(index, block)
    called = {target for site in sites for target in site.targets}
    passes = [
        StreamThroughBlock(stream, PausingBlock(each, sites, sampling), index)
        for stream, each in zip(streams, [block, *originals], strict=False)
    ]
    facts = BlockFacts(
        block=name,
        never_called=tuple(f"{name}.{target}" for target in targets if target not in called),
        ignored=tuple(f"{name}.{target}" for target in ignored),
    )
    return BlockState(
        index=index,
        name=name,
        is_last=index + 1 == len(model),
        block=block,
        targets=targets,
        shared=shared,
        sites=sites,
        junctions=junctions,
        passes=passes,
        say=say,
        facts=facts,
    )


def set_norm_weights(block: nn.Module, weights: Mapping[str, Float[Tensor, "..."]]) -> None:
    """Write parameters that are not quantized, by their names in the block."""
    for name, weight in weights.items():
        block.get_parameter(name).copy_(weight)
