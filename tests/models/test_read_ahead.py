"""Blocks read ahead are those that are read when asked for."""

import threading

import pytest
import torch
from tiny import tiny_model

from q2n.errors import NumericalError
from q2n.models.blocks import BlockwiseModel
from q2n.models.read_ahead import ReadAhead
from q2n.models.source import open_source


class Blocks:
    """What is read is noted, with the thread that reads; block 3 cannot be read."""

    def __init__(self):
        self.read, self.threads = [], []

    def __call__(self, index):
        self.read.append(index)
        self.threads.append(threading.current_thread())
        if index == 3:
            raise NumericalError("block 3 has NaN")
        return {"weight": torch.full((2,), float(index))}


def test_a_block_is_read_once_in_another_thread():
    blocks = Blocks()
    ahead = ReadAhead(blocks, pinned=False)
    ahead.begin(1)
    assert ahead.take(1)["weight"].tolist() == [1.0, 1.0]
    assert blocks.read == [1] and blocks.threads[0] is not threading.current_thread()
    assert ahead.take(1)["weight"].tolist() == [1.0, 1.0]  # again: read when asked for
    assert blocks.read == [1, 1] and blocks.threads[1] is threading.current_thread()


def test_another_block_leaves_the_one_read_ahead():
    blocks = Blocks()
    ahead = ReadAhead(blocks, pinned=False)
    ahead.begin(2)
    assert ahead.take(0)["weight"][0] == 0
    assert ahead.take(2)["weight"][0] == 2
    assert blocks.read == [2, 0]


def test_the_latest_begun_is_kept():
    blocks = Blocks()
    ahead = ReadAhead(blocks, pinned=False)
    ahead.begin(0)
    ahead.begin(1)
    assert ahead.take(1)["weight"][0] == 1
    assert blocks.read == [0, 1]


def test_what_cannot_be_read_is_said_when_it_is_asked_for():
    ahead = ReadAhead(Blocks(), pinned=False)
    ahead.begin(3)
    with pytest.raises(NumericalError, match="block 3 has NaN"):
        ahead.take(3)


def test_the_block_of_a_model_is_the_same_either_way():
    blocks = BlockwiseModel(open_source(tiny_model()))
    plain = blocks.load_block(1).state_dict()
    blocks._ahead.begin(1)
    ahead = blocks.load_block(1).state_dict()
    assert list(ahead) == list(plain)
    assert all(torch.equal(ahead[name], plain[name]) for name in plain)


def test_nothing_is_read_ahead_for_a_cpu_or_past_the_last_block():
    blocks = BlockwiseModel(open_source(tiny_model()))
    blocks.read_ahead(1)
    blocks.device = torch.device("meta")
    blocks.read_ahead(len(blocks))
    assert blocks._ahead._begun is None


@pytest.mark.gpu
def test_blocks_read_ahead_into_pinned_memory_are_the_same():
    blocks = BlockwiseModel(open_source(tiny_model()), "cuda")
    plain = blocks.load_block(1).state_dict()
    blocks.read_ahead(1)
    ahead = blocks.load_block(1).state_dict()
    assert all(ahead[name].is_cuda and torch.equal(ahead[name], plain[name]) for name in plain)
