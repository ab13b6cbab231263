"""The stage that learns factors: once everything in a block is rounded, what its layers store
besides codes is fitted to what the block gives."""

from dataclasses import dataclass, replace

from q2n.layers.learned_factors import FactorFit
from q2n.pipeline.block_state import BlockState
from q2n.pipeline.streams import BlockWindows, outputs_of
from q2n.refit.factors import learn_factors


@dataclass(frozen=True)
class FitFactors:
    """Runs the full-precision stream to the block's end, which leaves the list of passes, and
    starts the quantized stream's passes again."""

    fit: FactorFit

    def __call__(self, state: BlockState) -> BlockState:
        """Fit one block; one that stays in full precision is left as it is.

        Raises:
            NumericalError: the loss is not finite; names the block.
        """
        if not state.layers:
            return state
        state.say(f"{state.name}: factors")
        quantized, full = state.passes
        quantized.drop()
        own = outputs_of(quantized.stream, full.block.block, state.index)
        full.finish()
        windows = BlockWindows(quantized.stream, state.index, full.stream.hidden.get, own)
        layers, change = learn_factors(
            state.block, state.layers, windows, len(windows), self.fit, name=state.name
        )
        for name, layer in layers.items():
            state.targets[name].set(layer.dequantize())
        facts = replace(state.facts, fit_loss=change)
        return replace(state, passes=[quantized], layers=layers, facts=facts)
