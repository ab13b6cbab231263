"""Writing behind: in order, and no failure is lost."""

import threading

import pytest
from tiny import tiny_model

from q2n.errors import InputError
from q2n.methods.rtn import RTN
from q2n.models.blocks import BlockwiseModel
from q2n.models.source import open_source
from q2n.pipeline.options import LoopOptions
from q2n.pipeline.sequential import SequentialLoop
from q2n.pipeline.store import RunStore
from q2n.pipeline.write_behind import WriteBehind


def failing():
    raise InputError("the disk is full")


def test_one_thing_is_written_at_a_time_and_all_at_the_end():
    written, go = [], threading.Event()
    with WriteBehind() as behind:
        behind(lambda: (go.wait(10), written.append(1)))
        assert not written  # the caller went on
        go.set()
        behind(lambda: written.append(threading.current_thread()))
        assert written[0] == 1
    assert len(written) == 2 and written[1] is not threading.current_thread()


def test_a_failure_is_raised_with_the_next_or_at_the_end():
    behind = WriteBehind()
    behind(failing)
    with pytest.raises(InputError, match="disk is full"):
        behind(lambda: None)
    with pytest.raises(InputError, match="disk is full"), behind:
        behind(failing)


def test_what_ends_the_work_is_raised_once_all_is_written():
    written = []
    with pytest.raises(ZeroDivisionError), WriteBehind() as behind:
        behind(lambda: (written.append(1), failing()))
        raise ZeroDivisionError
    assert written == [1]


def test_blocks_are_stored_alike(tmp_path, monkeypatch):
    """Now, and behind as for another device than the CPU."""
    model, stored = BlockwiseModel(open_source(tiny_model())), []
    for name in ("now", "behind"):
        store = RunStore(tmp_path / name)
        store.start({}, {}, resume=False)
        SequentialLoop(model, RTN(bits=4), store, LoopOptions()).run(None)
        assert len(store.finished()) == len(model)
        files = sorted(store.folder.glob("*.safetensors"))
        stored.append([file.read_bytes() for file in files])
        monkeypatch.setattr(SequentialLoop, "_when", property(lambda self: self._behind))
    assert stored[0] == stored[1]
