"""A stream: the hidden states of all batches on their way from block to block.

The quantized prefix's stream is what the next layer really gets; a second one carries what
the full-precision model has at the same place, where a method asks for it. Each has its own copy
of what blocks carry beside the hidden states, such as keys and values that layers share.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from jaxtyping import Float, Int
from torch import Tensor, nn

from q2n.linalg.forward_products import forward_products
from q2n.models.blocks import BlockwiseModel
from q2n.models.calls import BlockCall, BlockInput, BlockOutput, Carried, map_tensors, part
from q2n.models.recording import BatchInputs
from q2n.pipeline.activations import Activations, activations
from q2n.pipeline.options import LoopOptions
from q2n.pipeline.passes import BlockPass, PausingBlock
from q2n.refit.block import Window


@dataclass
class Stream:
    """One set of block inputs, batch by batch, and what blocks are called with."""

    hidden: Activations
    tokens: int
    """Of the whole text."""
    calls: list[list[BlockCall]] = field(default_factory=list)
    """By batch and block; streams share them."""
    windows: list[int] = field(default_factory=list)
    """In each batch."""
    carried: list[Carried] = field(default_factory=list)
    """By batch, where the hidden states are stored; on disk there is no place for it, and it stays
    in main memory."""
    first_window: int = 0
    """Number in the text of the first of these windows: a rank has a part of them."""

    def __len__(self) -> int:
        return len(self.calls)

    def open(self, inputs: BatchInputs) -> None:
        """Add a batch at the input of the first block."""
        self.calls.append(inputs.calls)
        self.windows.append(inputs.windows)
        self.carried.append({})
        self.put(len(self) - 1, BlockOutput(inputs.hidden, inputs.carried))

    def inputs(self, batch: int, index: int) -> BlockInput:
        """One batch at the input of a block, on the device."""
        carried = map_tensors(partial(Tensor.to, device=self.hidden.device), self.carried[batch])
        return BlockInput(self.hidden.get(batch), self.calls[batch][index], carried)

    def put(self, batch: int, output: BlockOutput) -> None:
        """Replace one batch by what a block made of it."""
        self.hidden.put(batch, output.hidden)
        move = partial(Tensor.to, device=self.hidden.storage)
        self.carried[batch] = map_tensors(move, output.carried)

    def close(self) -> None:
        """Give up the hidden states, and the files in which they lie."""
        self.hidden.close()
        self.carried.clear()


def open_streams(
    model: BlockwiseModel,
    tokens: Int[Tensor, "windows length"],
    names: Sequence[str],
    options: LoopOptions,
    folder: Path,
    share: range | None = None,
) -> list[Stream]:
    """Streams that stand at the input of the first block, where all of them carry the same.

    Args:
        share: neighbouring windows that these streams carry; None: all.
        folder: parent of the streams' folders when activations are on disk.
    """
    place, limit = options.activations, options.bytes_in_memory / len(names)
    streams = [
        Stream(
            activations(place, model.device, folder / name, limit),
            tokens.numel(),
            first_window=share.start if share else 0,
        )
        for name in names
    ]
    own = tokens if share is None else tokens[share.start : share.stop]
    for inputs in model.record_inputs(own.split(options.batch_size)):
        for stream in streams:
            stream.open(inputs)
    return streams


class Probe:
    """A short window on which the sites of each block are looked up.

    Its hidden states stay those of the embeddings; what blocks carry goes on from block to block,
    and is kept for each.
    """

    def __init__(self, inputs: BatchInputs):
        self._inputs = inputs
        self._carried = {0: inputs.carried}

    def at(self, index: int) -> BlockInput:
        """The input of a block; the blocks before it have been passed."""
        carried = self._carried.get(index, {})
        return BlockInput(self._inputs.hidden, self._inputs.calls[index], carried)

    def needs(self, index: int) -> bool:
        """Whether later blocks read what this one leaves."""
        return bool(self._inputs.calls[index].needed)

    def advance(self, index: int, block: nn.Module) -> None:
        """Pass a block."""
        if self.needs(index):
            self._carried[index + 1] = self.at(index).run(block).carried


Outputs = Callable[[int], Float[Tensor, "*batch hidden"]]
"""What a block has given, by batch, on the device."""


class BlockWindows:
    """Single windows of a block's input and of the outputs to reach, by number."""

    def __init__(self, inputs: Stream, index: int, full: Outputs, own: Outputs | None = None):
        """Args: `full` and `own` are the outputs of a `Window`."""
        self.inputs, self.index, self.full, self.own = inputs, index, full, own
        self._places = [
            (batch, row) for batch, size in enumerate(inputs.windows) for row in range(size)
        ]

    def __len__(self) -> int:
        return len(self._places)

    def __call__(self, number: int) -> Window:
        """Input and outputs of one window."""
        batch, row = self._places[number]
        inputs, windows = self.inputs.inputs(batch, self.index), self.inputs.windows[batch]

        def cut(outputs: Outputs) -> Float[Tensor, "*window hidden"]:
            return part(outputs(batch), inputs.call.hidden_axis, row, windows)

        own = None if self.own is None else cut(self.own)
        return Window(inputs.window(row, windows), cut(self.full), own)


def outputs_of(stream: Stream, block: nn.Module, index: int) -> Outputs:
    """What a block makes of a stream, which stays where it is. It lies where the stream's hidden
    states do, or in main memory if these are on disk."""
    device = stream.hidden.device
    with forward_products(device):
        found = [
            stream.inputs(batch, index).run(block).hidden.to(stream.hidden.storage)
            for batch in range(len(stream))
        ]
    return lambda batch: found[batch].to(device)


class StreamThroughBlock:
    """The passes of one stream through one block, paused between rounds where memory allows."""

    def __init__(self, stream: Stream, block: PausingBlock, index: int):
        self.stream, self.block, self.index = stream, block, index
        self._paused: dict[int, BlockPass] = {}

    def take(self, batch: int) -> BlockPass:
        """The paused pass of a batch, or a fresh one."""
        if batch in self._paused:
            return self._paused.pop(batch)
        return BlockPass(self.block, self.stream.inputs(batch, self.index))

    def keep(self, batch: int, running: BlockPass) -> None:
        """Leave a pass paused for the next round, if its activations may stay."""
        if self.stream.hidden.keeps_passes:
            self._paused[batch] = running
        else:
            running.close()

    def finish(self) -> None:
        """Run every batch to the end; the outputs are the next block's inputs."""
        with forward_products(self.stream.hidden.device):
            for batch in range(len(self.stream)):
                self.stream.put(batch, self.take(batch).finish())

    def drop(self) -> None:
        """Give up the paused passes: nobody needs what comes after."""
        while self._paused:
            self._paused.popitem()[1].close()
