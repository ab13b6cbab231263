"""A stream: the hidden states of all batches on their way from block to block.

The quantized prefix's stream is what the next layer really gets; a second one carries what
the full-precision model has at the same place, where a method asks for it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jaxtyping import Int
from torch import Tensor

from q2n.models.blocks import BlockCall, BlockwiseModel
from q2n.pipeline.activations import Activations, activations
from q2n.pipeline.options import LoopOptions
from q2n.pipeline.passes import BlockPass, PausingBlock
from q2n.refit.block import Window


@dataclass
class Stream:
    """One set of block inputs, batch by batch, and what blocks are called with."""

    hidden: Activations
    tokens: int
    """Of all batches."""
    calls: list[list[BlockCall]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.calls)

    def close(self) -> None:
        """Give up the hidden states, and the files in which they lie."""
        self.hidden.close()


def open_streams(
    model: BlockwiseModel,
    tokens: Int[Tensor, "windows length"],
    names: Sequence[str],
    options: LoopOptions,
    folder: Path,
) -> list[Stream]:
    """Streams that stand at the input of the first block, where all of them carry the same.

    Args:
        folder: parent of the streams' folders when activations are on disk.
    """
    streams = [
        Stream(activations(options.activations, model.device, folder / name), tokens.numel())
        for name in names
    ]
    for number, inputs in enumerate(model.record_inputs(tokens.split(options.batch_size))):
        for stream in streams:
            stream.hidden.put(number, inputs.hidden)
            stream.calls.append(inputs.calls)
    return streams


class BlockWindows:
    """Single windows of a block's input, its full-precision output and its call, by number."""

    def __init__(self, inputs: Stream, outputs: Stream, index: int):
        self.inputs, self.outputs, self.index = inputs, outputs, index
        sizes = [len(inputs.hidden.get(batch)) for batch in range(len(inputs))]
        self._places = [(batch, row) for batch, size in enumerate(sizes) for row in range(size)]
        self._sizes = sizes

    def __len__(self) -> int:
        return len(self._places)

    def __call__(self, number: int) -> Window:
        """Input, output and call of one window."""
        batch, row = self._places[number]
        call = self.inputs.calls[batch][self.index].window(row, self._sizes[batch])
        one = slice(row, row + 1)
        return self.inputs.hidden.get(batch)[one], self.outputs.hidden.get(batch)[one], call


class StreamThroughBlock:
    """The passes of one stream through one block, paused between rounds where memory allows."""

    def __init__(self, stream: Stream, block: PausingBlock, index: int):
        self.stream, self.block, self.index = stream, block, index
        self._paused: dict[int, BlockPass] = {}

    def take(self, batch: int) -> BlockPass:
        """The paused pass of a batch, or a fresh one."""
        if batch in self._paused:
            return self._paused.pop(batch)
        call = self.stream.calls[batch][self.index]
        return BlockPass(self.block, self.stream.hidden.get(batch), call)

    def keep(self, batch: int, running: BlockPass) -> None:
        """Leave a pass paused for the next round, if its activations may stay."""
        if self.stream.hidden.keeps_passes:
            self._paused[batch] = running
        else:
            running.close()

    def finish(self) -> None:
        """Run every batch to the end; the outputs are the next block's inputs."""
        for batch in range(len(self.stream)):
            self.stream.hidden.put(batch, self.take(batch).finish())

    def drop(self) -> None:
        """Give up the paused passes: nobody needs what comes after."""
        while self._paused:
            self._paused.popitem()[1].close()
