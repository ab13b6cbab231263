r"""What each width of each group of layers costs the predictions, before anything is quantized.

With E = W - Q the error of a layer at some width, found by a trial run of the method on the
full-precision inputs, and g_s the gradient of one window's -sum log p_y in W, labels y drawn from
the model (backward.py), the divergence from the model grows by

    K = 1/2 mean_s <g_s, E>^2 / T        nats a token, T tokens in a window:

the quadratic form of Fisher's matrix in the very direction of the error. No matrix of that is
formed, nothing is assumed of its structure, and one pass serves all widths. Errors of one group are
added up before they are squared. With S windows and draws the standard error of a K is about
sqrt(2 / S) of it; what is common to the widths cancels where they are compared.

Of widths that are bits, 2 and 4 are tried. Each bit divides the cost of a layer by the same
factor, to a few percent, so 3 bits lie between the two, in logarithms, and 8 beyond; sizes are
straight in the bits.

Layers that read one input are a group (runtimes fuse q, k, v and gate, up), as are all experts of
a block.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from q2n.data.windows import TokenWindows
from q2n.errors import NumericalError
from q2n.linalg.allocation import Point
from q2n.linalg.finite import all_finite
from q2n.logging import Reporter
from q2n.method import Method
from q2n.models.blocks import BlockwiseModel
from q2n.models.sites import Site
from q2n.option_types import Width
from q2n.pipeline.backward import Backward
from q2n.pipeline.block_stages import EachRound
from q2n.pipeline.block_state import BlockState, enter_block
from q2n.pipeline.measure import Measure
from q2n.pipeline.options import LoopOptions
from q2n.pipeline.quantize import problem_of
from q2n.pipeline.sequential import PROBE_LENGTH
from q2n.pipeline.streams import Probe

DRAWS = 1
"""Labels at each position: more windows tell more than more labels on the same ones."""
TINY = 1e-30
_WITHOUT = "leave --allocate out, or give --allocation FILE"
TRIED = (2, 4)
"""Bits, where all candidates are told by bits."""


@dataclass(frozen=True)
class Group:
    """Layers that have one width."""

    layers: tuple[str, ...]
    """Full names."""
    points: Mapping[Width, Point]
    """What each width costs, in nats a token, and takes, in stored bits."""

    @property
    def name(self) -> str:
        """The first layer's."""
        return self.layers[0]

    def to_json(self) -> dict[str, Any]:
        """JSON values; widths that are numbers become texts."""
        points = {str(width): [x.cost, x.size] for width, x in self.points.items()}
        return {"layers": list(self.layers), "points": points}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Group":
        """Inverse of `to_json`."""
        return cls(
            tuple(values["layers"]),
            {
                int(width) if width.isdecimal() else width: Point(*point)
                for width, point in values["points"].items()
            },
        )


@dataclass(frozen=True)
class Trials:
    """The stage that quantizes every target of a round at every width and keeps the errors; the
    block stays as it is."""

    candidates: Mapping[Width, Method]
    options: LoopOptions
    scale_dtype: torch.dtype
    errors: dict[tuple[str, Width], Float[Tensor, "rows columns"]] = field(default_factory=dict)
    """By target and width, laid out as the parameter is, in float16."""
    sizes: dict[tuple[str, Width], int] = field(default_factory=dict)
    """Stored bits."""

    def __call__(self, state: BlockState) -> BlockState:
        for site in state.round:
            for name in state.sites[site].targets:
                state.say(f"{state.full_name(name)}: trial")
                statistics = state.statistics.get(site)
                problem = problem_of(state, name, statistics, self.options, self.scale_dtype)
                for width, method in self.candidates.items():
                    layer = method.quantize(problem)
                    error = problem.weight - layer.dequantize()
                    self.errors[name, width] = state.targets[name].stored(error).half()
                    self.sizes[name, width] = layer.stored_bits
        return state


@dataclass(frozen=True)
class BitCosts:
    """Finds the costs of a model's groups."""

    candidates: Mapping[Width, Method]
    """By width: trials of the method."""
    options: LoopOptions
    scale_dtype: torch.dtype
    reporter: Reporter

    @cached_property
    def tried(self) -> Mapping[Width, Method]:
        """The candidates that are tried."""
        return tried_of(self.candidates)

    def __call__(self, model: BlockwiseModel, windows: TokenWindows, folder: Path) -> list[Group]:
        """All groups, in the model's order.

        Args:
            folder: for activations that go to disk.

        Raises:
            NumericalError: a layer's statistics cannot be used, or its gradients are not finite.
        """
        groups: list[Group] = []
        blocks, tokens = len(model), windows.tokens
        with (
            torch.no_grad(),
            self.reporter.bar("bits", 2 * blocks) as bar,
            Backward(model, tokens, self.options, folder, draws=DRAWS, without=_WITHOUT) as passes,
        ):
            probe = Probe(next(model.record_inputs([tokens[:1, :PROBE_LENGTH]])))
            passes.to_the_end(bar, probe.advance)
            for index in reversed(range(blocks)):
                groups[:0] = self._of_block(model, index, passes, probe, bar.detail)
                bar.advance()
        return groups

    def _of_block(
        self, model: BlockwiseModel, index: int, passes: Backward, probe: Probe, say: Any
    ) -> list[Group]:
        required = next(iter(self.candidates.values())).required_statistics
        stream = passes.taken(index)
        state = enter_block(
            model, index, [stream], probe, say, options=self.options, required=required
        )
        model.read_ahead(index - 1)
        trials = Trials(self.tried, self.options, self.scale_dtype)
        measure = [Measure(required, self.options, model.device)] if required else []
        EachRound([*measure, trials], one_site=True)(state)
        for running in state.passes:
            running.drop()
        stream.close()
        say(f"{state.name}: gradients")
        return self._weighed(state, trials, passes)

    def _weighed(self, state: BlockState, trials: Trials, passes: Backward) -> list[Group]:
        """The groups of a block, from one window and draw after the other."""
        groups = _groups(state.sites)
        parameters = {
            name: state.targets[name].module.get_parameter("weight").requires_grad_()
            for names in groups
            for name in names
        }
        squares = torch.zeros(len(groups), len(self.tried), dtype=torch.float64)
        for _ in passes.through(state.index, state.block):
            for number, names in enumerate(groups):
                for place, width in enumerate(self.tried):
                    along = sum(
                        float((gradient.float() * trials.errors[name, width]).sum())
                        for name in names
                        if (gradient := parameters[name].grad) is not None
                    )
                    squares[number, place] += along**2
        _require_finite(squares, [state.full_name(names[0]) for names in groups])
        costs = squares / (2 * passes.steps * passes.tokens.shape[1])
        return [
            Group(
                tuple(state.full_name(name) for name in names),
                self._points(
                    {
                        width: Point(cost, sum(trials.sizes[name, width] for name in names))
                        for width, cost in zip(self.tried, costs[number].tolist(), strict=True)
                    }
                ),
            )
            for number, names in enumerate(groups)
        ]

    def _points(self, tried: dict[Width, Point]) -> dict[Width, Point]:
        """Those of all candidates, from those that were tried."""
        if len(tried) == len(self.candidates):
            return tried
        one, other = (tried[x] for x in TRIED)
        apart = TRIED[1] - TRIED[0]
        factor = (max(other.cost, TINY) / max(one.cost, TINY)) ** (1 / apart)
        step = (other.size - one.size) // apart
        return {
            bits: Point(one.cost * factor ** (bits - TRIED[0]), one.size + step * (bits - TRIED[0]))
            for bits in self.candidates
            if isinstance(bits, int)
        }


def _require_finite(squares: Float[Tensor, "groups widths"], names: Sequence[str]) -> None:
    """Refuse costs by which no width is better than another; `names` of the groups."""
    for name, costs in zip(names, squares, strict=True):
        if not all_finite(costs):
            raise NumericalError(
                f"{name}: what its widths cost is not finite, for the gradients of the predictions "
                f"in its weight are NaN or too large; use --dtype float32, or {_WITHOUT}"
            )


def tried_of(candidates: Mapping[Width, Method]) -> Mapping[Width, Method]:
    """Those that are tried."""
    if not all(isinstance(x, int) for x in candidates):
        return candidates
    return {x: candidates[x] for x in TRIED}


def _groups(sites: Sequence[Site]) -> list[tuple[str, ...]]:
    """Targets of a block that have one width: those of one input, and of all experts."""
    experts = tuple(name for site in sites if site.expert is not None for name in site.targets)
    rest = [site.targets for site in sites if site.expert is None]
    return [*rest, *([experts] if experts else [])]
