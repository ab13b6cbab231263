"""The stages that end a block's turn: it is stored, and its outputs become the next inputs."""

from dataclasses import dataclass, replace

from q2n.logging import Reporter
from q2n.pipeline.block_state import BlockState
from q2n.pipeline.stopwatch import Stopwatch
from q2n.pipeline.store import RunStore
from q2n.pipeline.write_behind import When


@dataclass(frozen=True)
class Store:
    """Writes the block's layers, its changed norm weights and its facts."""

    store: RunStore
    when: When
    """Calls what writes a block, now or while the next one is worked on."""
    stopwatch: Stopwatch
    reporter: Reporter

    def __call__(self, state: BlockState) -> BlockState:
        """Store one block.

        Raises:
            InputError: the folder cannot be written, or the block before could not be.
        """
        facts = replace(state.facts, seconds=self.stopwatch.lap())
        layers = {state.full_name(name): layer for name, layer in state.layers.items()}
        norms = {state.full_name(name): weight for name, weight in state.norm_weights.items()}
        self.store.write_block(state.index, layers, facts, norms, self.when)
        self.reporter.event("block", block=facts.block, seconds=facts.seconds, **facts.losses)
        return replace(state, facts=facts)


def advance(state: BlockState) -> BlockState:
    """Run the passes to the end of the block; after the last block nobody needs its outputs."""
    state.say(f"{state.name}: outputs")
    for stream in state.passes:
        stream.drop() if state.is_last else stream.finish()
    return state
