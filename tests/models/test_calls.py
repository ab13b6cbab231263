"""One window of what a block is called with."""

import torch

from q2n.models.calls import BlockCall, BlockInput, Held, Hidden


def test_windows_share_what_begins_with_an_axis_of_one():
    """Whatever the sizes of its other axes are: a table of 4 positions and 4 windows."""
    windows = 4
    table, keys = torch.randn(1, 4, 4), torch.randn(windows, 2, 4)
    call = BlockCall(0, (Hidden(), Held(0)), BlockCall.of(Hidden(), 1).structure, (0, None))
    carried = {Held(0): {"main": (table, table + 1), "keys": keys}}
    given = BlockInput(torch.randn(windows, 4, 8), call, carried).window(2, windows)
    found = given.carried[Held(0)]
    assert torch.equal(found["main"][0], table) and torch.equal(found["main"][1], table + 1)
    assert torch.equal(found["keys"], keys[2:3]) and given.hidden.shape == (1, 4, 8)
