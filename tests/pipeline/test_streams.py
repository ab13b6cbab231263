"""Windows of a stream, one at a time."""

import torch

from q2n.models.blocks import BlockCall
from q2n.pipeline.activations import InMemory
from q2n.pipeline.streams import BlockWindows, Stream


def stream_of(batches, calls):
    device = torch.device("cpu")
    hidden = InMemory(device, device)
    for number, batch in enumerate(batches):
        hidden.put(number, batch)
    return Stream(hidden, sum(x[..., 0].numel() for x in batches), calls)


def test_windows_of_uneven_batches_are_counted_through():
    """Each with its row of input, output and mask, for the block asked for."""
    sizes = (3, 3, 2)
    inputs = [torch.randn(size, 4, 8) for size in sizes]
    outputs = [torch.randn(size, 4, 8) for size in sizes]
    masks = [[torch.randn(size, 1, 4, 4) for _ in range(2)] for size in sizes]
    calls = [[BlockCall((), {"mask": mask}) for mask in pair] for pair in masks]
    for index in range(2):
        windows = BlockWindows(stream_of(inputs, calls), stream_of(outputs, calls), index)
        assert len(windows) == 8
        for number in range(8):
            hidden, target, call = windows(number)
            assert torch.equal(hidden, torch.cat(inputs)[number : number + 1])
            assert torch.equal(target, torch.cat(outputs)[number : number + 1])
            expected = torch.cat([pair[index] for pair in masks])[number : number + 1]
            assert torch.equal(call.kwargs["mask"], expected)
