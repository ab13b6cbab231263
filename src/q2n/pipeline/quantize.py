"""The stage that quantizes: every target of one round of sites takes its new weight."""

import time
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from q2n.layers.quantized import QuantizedLinear
from q2n.linalg.output_error import OutputError
from q2n.linalg.statistics import InputStatistics
from q2n.method import LayerProblem, Method
from q2n.pipeline.block_state import BlockState
from q2n.pipeline.options import LoopOptions


@dataclass(frozen=True)
class Quantize:
    """Hands each target to the method, in call order, and drops the statistics."""

    method: Method
    options: LoopOptions
    scale_dtype: torch.dtype

    def __call__(self, state: BlockState, own: Collection[str] | None = None) -> BlockState:
        """Quantize one round.

        Args:
            own: the only targets to quantize.

        Raises:
            InputError: the method's options do not fit a layer.
            NumericalError: a layer's statistics cannot be used.
        """
        layers = {
            name: self._quantize(state, name, state.statistics.get(site)).with_record(
                **_routed(state, site)
            )
            for site in state.round
            for name in state.sites[site].targets
            if own is None or name in own
        }
        return replace(state, layers={**state.layers, **layers}, statistics={})

    def _quantize(
        self, state: BlockState, name: str, statistics: InputStatistics | None
    ) -> QuantizedLinear:
        state.say(state.full_name(name))
        target = state.targets[name]
        problem = problem_of(state, name, statistics, self.options, self.scale_dtype)
        weight = problem.weight
        start = time.perf_counter()
        layer = self.method.quantize(problem)
        seconds = time.perf_counter() - start
        layer = layer.with_record(seconds=seconds, **_on_text(layer, weight, statistics))
        target.set(layer.dequantize())  # `weight` may be the very tensor that this overwrites
        return layer


def problem_of(
    state: BlockState,
    name: str,
    statistics: InputStatistics | None,
    options: LoopOptions,
    scale_dtype: torch.dtype,
) -> LayerProblem:
    """What a method is given of a target, by its name in the block."""
    full_name, gradients = state.full_name(name), state.gradients.get(name)
    weight = state.targets[name].weight()
    return LayerProblem(
        name=full_name,
        weight=weight,
        statistics=statistics,
        gradients=None if gradients is None else gradients.to(weight),
        clipping=state.clipping.get(name),
        scale_dtype=scale_dtype,
        seed=options.seed_of(full_name),
    )


def _routed(state: BlockState, site: int) -> dict[str, int]:
    """Of an expert: the tokens of the text that its router sent it."""
    if state.sites[site].expert is None or site not in state.reached:
        return {}
    return {"routed_tokens": state.reached[site]}


def _on_text(
    layer: QuantizedLinear, weight: Float[Tensor, "out in"], statistics: InputStatistics | None
) -> dict[str, Any]:
    """What was measured: the number of columns whose input is always 0, and the relative output
    error, of squares, unless the method has noted it already."""
    if statistics is None:
        return {}
    gram = statistics.gram
    found: dict[str, Any] = {"dead_columns": int((gram.diagonal() == 0).sum())}
    if "output_error" not in layer.record:
        found["output_error"] = OutputError.of(weight, layer.dequantize(), gram).relative()
    return found
