"""The learning of a rotation as a stage of a run, before its first block.

The turn that was learned is stored beside the blocks, under a checksum and a stem of its own. A run
that is interrupted later takes it from there; one that is interrupted while it learns begins to
learn again, and comes to the same turn.
"""

from safetensors.torch import load, save

from q2n.data.windows import TokenWindows
from q2n.logging import Reporter
from q2n.models.opened import OpenedModel
from q2n.models.rotated_source import RotatedSource
from q2n.models.turned_source import TurnedSource
from q2n.pipeline.stopwatch import Stopwatch
from q2n.pipeline.store import RunStore
from q2n.refit.rotation import RotationLearning
from q2n.transforms.turn import Turn


def learned(
    store: RunStore,
    learning: RotationLearning,
    opened: OpenedModel,
    windows: TokenWindows,
    *,
    seed: int,
    reporter: Reporter,
) -> OpenedModel:
    """The rotated model, turned further as it learns to be, or did before an interruption.

    Raises:
        NumericalError: the loss is not finite.
        ResumeError: what is stored is damaged.
        InputError: the folder cannot be written.
    """
    source = opened.source
    assert isinstance(source, RotatedSource)
    if not store.turn.count():
        stopwatch = Stopwatch()
        with reporter.bar("rotation", learning.steps) as bar:
            turn, losses = learning(
                opened.in_memory(source),
                source.layout,
                source.parts,
                windows.tokens,
                seed=seed,
                progress=bar.advance,
            )
        values = {"losses": losses, "seconds": stopwatch.lap()}
        store.turn.write(0, values, save(vars(turn)))
    tensors = load(store.turn.tensors(0, store.turn.read(0)))
    return opened.with_source(TurnedSource(source, Turn(**tensors)))
