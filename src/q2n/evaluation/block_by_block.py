"""A model that does not fit into memory, in two parts: its blocks run one at a time.

The states of all windows pass a block before the next one is loaded, as calibration activations do
in the block loop (pipeline/streams.py). What comes after the blocks is the model's own code, run
with stand-ins for them. So memory holds one block, the embeddings, the head and the states, and the
states are those of the whole model to the bit.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from q2n.data.windows import TokenWindows
from q2n.evaluation.body import require_fit
from q2n.models.blocks import BlockwiseModel
from q2n.models.head import PROBE, HeadCall, States, states_in, take_apart
from q2n.pipeline.activations import Place
from q2n.pipeline.options import LoopOptions
from q2n.pipeline.streams import Stream, open_streams


class BlockByBlock:
    """A model whose blocks are loaded when their turn comes.

    Args:
        place: where the states of all windows lie between two blocks.
        limit: GiB of them that lie there; the others lie on disk.
        progress: called before each block, with its number from 0.

    Raises:
        InputError: the model does not run its blocks one after another, or the windows do not fit
            it.
    """

    def __init__(
        self,
        blocks: BlockwiseModel,
        windows: TokenWindows,
        *,
        place: Place = "device",
        limit: float | None = None,
        progress: Callable[[int], None] | None = None,
    ):
        self.blocks, self.windows = blocks, windows
        self._where: dict[str, Any] = {"activations": place, "activations_limit": limit}
        self.progress = progress
        require_fit(blocks.without_blocks, windows)
        self.head, self._body = head_and_body(blocks, windows)

    @torch.no_grad()
    def states(self, batch_size: int) -> Iterator[States]:
        options = LoopOptions(batch_size=batch_size, **self._where)
        with TemporaryDirectory(prefix="q2n-states-") as folder:
            tokens = self.windows.tokens
            [stream] = open_streams(self.blocks, tokens, ["states"], options, Path(folder))
            self._pass_blocks(stream)
            for batch, windows in enumerate(tokens.split(batch_size)):
                hidden = stream.hidden.get(batch)
                yield from states_in(self.blocks.run_after(windows, hidden, self._body))
            stream.close()

    def _pass_blocks(self, stream: Stream) -> None:
        for index in range(len(self.blocks)):
            if self.progress is not None:
                self.progress(index)
            block = self.blocks.load_block(index)
            self.blocks.read_ahead(index + 1)
            for batch in range(len(stream)):
                stream.put(batch, stream.inputs(batch, index).run(block))


def head_and_body(blocks: BlockwiseModel, windows: TokenWindows) -> tuple[HeadCall, nn.Module]:
    """The head of a model, and the part of it that `run_after` turns into the head's states."""
    probe = windows.tokens[:1, :PROBE]
    hidden = next(blocks.record_inputs([probe])).hidden
    return take_apart(blocks.without_blocks, lambda module: blocks.run_after(probe, hidden, module))
