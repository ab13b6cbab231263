"""Ranks that come to a meeting, and those that do not."""

from datetime import timedelta

import pytest
import torch.distributed as dist

from q2n.distributed.launch import launched
from q2n.distributed.meeting import wait_for_all
from q2n.errors import InputError, RankError


def test_nobody_waits_once_all_have_come():
    store = dist.HashStore()
    store.set("0", "here")
    store.set("2", "here")
    wait_for_all(store, 1, 3, timedelta(seconds=0))
    assert store.get("1") == b"here"


def test_who_does_not_come_is_named():
    store = dist.HashStore()
    store.set("2", "here")
    with pytest.raises(RankError, match="of 4 ranks 1, 3 did not start within 0 minutes"):
        wait_for_all(store, 0, 4, timedelta(seconds=0.1))


def test_an_environment_without_a_place_to_meet_is_refused(monkeypatch):
    """As some job schedulers make it for a single process."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    refused = pytest.raises(InputError, match="WORLD_SIZE is 2 .* MASTER_ADDR, MASTER_PORT not set")
    with refused, launched():
        raise AssertionError("nobody has met")
