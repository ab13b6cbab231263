"""The stage that refits: scales, norm weights and roundings of a block whose targets are all
quantized, toward the output of the full-precision block."""

from dataclasses import dataclass, replace

from q2n.pipeline.block_state import BlockState, set_norm_weights
from q2n.pipeline.options import LoopOptions
from q2n.pipeline.streams import BlockWindows
from q2n.refit.block import BlockRefit


@dataclass(frozen=True)
class RefitBlock:
    """Runs the full-precision stream to the block's end, which leaves the list of passes, and
    starts the quantized stream's passes again."""

    refit: BlockRefit
    options: LoopOptions

    def __call__(self, state: BlockState) -> BlockState:
        """Refit one block; one that stays in full precision is left as it is.

        Raises:
            NumericalError: the loss is not finite; names the block.
        """
        if not state.layers:
            return state
        state.say(f"{state.name}: refit")
        quantized, full = state.passes
        quantized.drop()
        full.finish()
        windows = BlockWindows(quantized.stream, state.index, full.stream.hidden.get)
        tuned = self.refit(
            state.block,
            state.layers,
            windows,
            len(windows),
            fixed=state.shared,
            name=state.name,
            seed=self.options.seed_of(state.name),
        )
        for name, layer in tuned.layers.items():
            state.targets[name].set(layer.dequantize())
        set_norm_weights(state.block, tuned.norm_weights)
        return replace(
            state,
            passes=[quantized],
            layers=tuned.layers,
            norm_weights={**state.norm_weights, **tuned.norm_weights},
            facts=replace(state.facts, refit_loss=tuned.change),
        )
