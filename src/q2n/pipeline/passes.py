"""Forward passes that pause where statistics are taken.

A true-sequential method quantizes q, k and v before it measures the input of o. The
plain way runs the block once more from its beginning for every site, 2.4 times the
work on a LLaMA block. Here a pass runs in a greenlet (a function that can be left in
the middle and entered again): it stops when the first target of a site is about to
run, hands out that target's input, and later goes on from there, through the targets
that have been quantized meanwhile. Nothing is computed twice, nothing past the last
site asked for is computed at all. What a paused pass holds is its batch's activations
inside the block; where that is too much, a pass is dropped and another one started.
"""

from collections.abc import Sequence
from functools import partial

from greenlet import getcurrent
from jaxtyping import Float
from torch import Tensor, nn

from q2n.models.calls import BlockInput, BlockOutput
from q2n.models.experts import experts_in
from q2n.models.residual_streams import BLOCK_INPUT
from q2n.models.sites import Site
from q2n.models.targets import targets_in
from q2n.pipeline.expert_inputs import ExpertInputs, ExpertSampling
from q2n.pipeline.running_pass import RunningPass

_ROUTED_ALONE = ExpertSampling(shrinkage=0.0, all_experts=False, tokens=1)


class PausingBlock:
    """A block whose targets report to the running pass before they compute."""

    def __init__(
        self, block: nn.Module, sites: Sequence[Site], sampling: ExpertSampling = _ROUTED_ALONE
    ):
        self.block, targets = block, targets_in(block)
        positions: dict[str, dict[tuple[int, bool], int]] = {}
        for position, site in enumerate(sites):
            if site.stage is not None and site.expert is not None:
                name, stage = site.stage
                positions.setdefault(name, {})[site.expert, stage.down] = position
                continue
            for name in site.targets:
                targets[name].module.register_forward_pre_hook(partial(_announce, position))
        for name in {site.stream for site in sites if site.stream}:
            block.get_submodule(name).register_forward_pre_hook(partial(_keep_stream, name))
        for name, experts in experts_in(block):
            if name in positions:
                experts.watcher = ExpertInputs(name, positions[name], sampling)


def _announce(position: int, _: nn.Module, args: tuple[Tensor, ...]) -> None:
    """Pause the pass that this target runs in, if it has not yet paused at this site."""
    running = getcurrent()
    if isinstance(running, RunningPass) and position > running.position:
        running.pause(position, args[0], args[0][..., 0].numel())


def _keep_stream(name: str, _: nn.Module, args: tuple[Tensor, ...]) -> None:
    """Leave the residual stream that a module is given where its pass finds it."""
    running = getcurrent()
    if isinstance(running, RunningPass):
        running.streams[name] = args[0]


class BlockPass:
    """One batch on its way through one block."""

    def __init__(self, block: PausingBlock, inputs: BlockInput):
        self._run = RunningPass(partial(inputs.run, block.block))
        self._run.streams[BLOCK_INPUT] = inputs.hidden
        self._latest: Tensor | BlockOutput | None = None

    def follow(self, leader: "BlockPass") -> None:
        """Let another pass of the same batch say which tokens reach an expert."""
        self._run.leader = leader._run

    def input_at(self, site: int) -> Float[Tensor, "*batch in"] | None:
        """The input of a site, or None if this batch does not visit it (an idle expert)."""
        while not self._run.dead and self._run.position < site:
            self._latest = self._run.switch()
        paused = self._latest if self._run.position == site and not self._run.dead else None
        assert not isinstance(paused, BlockOutput)
        return paused

    def stream_at(self, site: Site) -> Float[Tensor, "*batch hidden"] | None:
        """The residual stream before the site's output is added to it; None if it is to none."""
        return None if site.stream is None else self._run.streams[site.stream]

    @property
    def reached(self) -> int:
        """Tokens that reach the site at which the pass is paused: of an expert, the routed ones."""
        return self._run.reached

    def finish(self) -> BlockOutput:
        """Run to the end: what the block makes of its input."""
        while not self._run.dead:
            self._latest = self._run.switch()
        assert isinstance(self._latest, BlockOutput)
        return self._latest

    def close(self) -> None:
        """Give up a pass that will not be finished. A paused greenlet that is only forgotten
        keeps its activations: its own frames name it."""
        if not self._run.dead:
            self._run.throw()
        self._latest = None
