"""Windows of a stream, one at a time."""

from dataclasses import replace

import torch

from q2n.models.calls import BlockCall, Held, Hidden
from q2n.models.recording import BatchInputs
from q2n.pipeline.activations import InMemory
from q2n.pipeline.streams import BlockWindows, Stream


def stream_of(batches, calls, held):
    stream = Stream(InMemory(torch.device("cpu"), torch.device("cpu")), 0)
    for hidden, pair, keys in zip(batches, calls, held, strict=True):
        stream.open(BatchInputs(hidden, pair, {Held(0): {"keys": keys}}, len(keys)))
    return stream


def test_windows_of_uneven_batches_are_counted_through():
    """Each with its part of input, output, mask and shared keys, for the block asked for. Windows
    lie along the second axis of the hidden states, as in Gemma 3n."""
    sizes = (3, 3, 2)
    inputs, outputs = ([torch.randn(2, size, 4, 8) for size in sizes] for _ in range(2))
    keys = [torch.randn(size, 5) for size in sizes]
    masks = [[torch.randn(size, 1, 4, 4) for _ in range(2)] for size in sizes]
    calls = [
        [replace(BlockCall.of(Hidden(), mask, Held(0)), axes=(1, 0, None)) for mask in pair]
        for pair in masks
    ]
    for index in range(2):
        windows = BlockWindows(
            stream_of(inputs, calls, keys), index, stream_of(outputs, calls, keys).hidden.get
        )
        assert len(windows) == 8
        for number in range(8):
            window = windows(number)
            one, target = window.inputs, window.full
            row = slice(number, number + 1)
            hidden, mask, held = one.call.arguments(one.hidden, one.carried)[0]
            assert torch.equal(hidden, torch.cat(inputs, 1)[:, row])
            assert torch.equal(target, torch.cat(outputs, 1)[:, row])
            assert torch.equal(mask, torch.cat([pair[index] for pair in masks])[row])
            assert torch.equal(held["keys"], torch.cat(keys)[row])
