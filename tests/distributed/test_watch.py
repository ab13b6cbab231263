"""Who has ended, over connections of one process with itself."""

import socket
import time
from concurrent.futures import ThreadPoolExecutor
from queue import Queue

import pytest

from q2n.distributed import watch as module
from q2n.distributed.watch import Ended, watch


@pytest.fixture
def three(monkeypatch):
    """The watches of three ranks."""
    monkeypatch.setattr(module, "GRACE", 1e6)
    told: Queue[list] = Queue()

    def tell(values):
        if values is None:
            return told.get(timeout=30)
        stranger = socket.create_connection(("localhost", values[0]))
        stranger.sendall(b"0" * 32 + b" 00000001\n")
        for _ in range(2):
            told.put(values)
        return values

    with ThreadPoolExecutor(3) as pool:
        started = [pool.submit(watch, rank, 3, "localhost", tell) for rank in range(3)]
        watches = [one.result(60) for one in started]
    assert sorted(watches[0]._connections) == [1, 2]
    yield watches
    for one in watches:  # first, so that none takes another's leaving for an end, and ends pytest
        one._leaving.set()
    for one in watches:
        one.leave()


def test_a_silent_end_is_told_to_all_with_its_place(three):
    three[1].at("model.layers.3.mlp.down_proj")
    three[1].leave()  # its connections close, as a process that is killed leaves them
    expected = Ended(1, "model.layers.3.mlp.down_proj", None)
    assert three[0].ended(10.0) == three[2].ended(10.0) == expected
    assert "rank 1 ended at model.layers.3.mlp.down_proj without a word" in str(expected)


def test_the_end_of_the_first_rank_is_noticed(three):
    three[0].at("model.layers.0.self_attn.o_proj")
    three[0].leave()
    assert three[2].ended(10.0) == Ended(0, "model.layers.0.self_attn.o_proj", None)


def test_a_rank_that_leaves_takes_nobody_else_for_ended(three):
    three[0].leave()
    assert three[0].ended(0.5) is None
    assert three[1].ended(10.0) == three[2].ended(10.0) == Ended(0, "the start", None)


def test_a_reason_goes_along(three):
    three[2].failed("NumericalError: too large")
    assert three[1].ended(10.0) == Ended(2, "the start", "NumericalError: too large")


def test_a_finished_rank_has_not_ended_early(three):
    three[1].done()
    time.sleep(0.2)
    three[1].leave()
    assert three[0].ended(0.5) is None and three[2].ended(0.0) is None


def test_a_process_that_waits_on_is_ended(three, monkeypatch, capsys):
    codes = []
    monkeypatch.setattr(module, "GRACE", 0.0)
    monkeypatch.setattr(module.os, "_exit", codes.append)
    three[1].failed("why")
    three[0].ended(10.0)
    deadline = time.time() + 10
    while len(codes) < 2 and time.time() < deadline:
        time.sleep(0.01)
    assert codes == [1, 1]
    assert "error: rank 1 ended at the start: why" in capsys.readouterr().err
