"""Which GPU a rank takes, by what its process sees."""

from types import SimpleNamespace

import pytest
import torch

from q2n.distributed.group import Group
from q2n.errors import InputError


@pytest.fixture
def devices(monkeypatch):
    """Asks for the device of a rank whose process sees these GPUs, beside ranks with others."""

    def asked(rank: int, *, local: int, sees: list[str], taken: list[str]) -> str:
        monkeypatch.setenv("LOCAL_RANK", str(local))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(sees))
        monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
        monkeypatch.setattr(
            torch.cuda, "get_device_properties", lambda own: SimpleNamespace(uuid=sees[own])
        )
        group = object.__new__(Group)
        group.rank, group.size = rank, len(taken)
        own = sees[local % len(sees)] if sees else ""
        assert taken[rank] == own
        group.gather = lambda data: [name.encode() for name in taken]
        return group.device("auto")

    return asked


def test_each_process_sees_all_gpus(devices):
    assert devices(1, local=1, sees=["a", "b"], taken=["a", "b"]) == "cuda:1"


def test_each_process_sees_its_own_gpu_alone(devices):
    """As Slurm starts them with --gpus-per-task 1."""
    assert devices(1, local=1, sees=["b"], taken=["a", "b"]) == "cuda:0"


def test_the_same_number_on_two_machines(devices):
    assert devices(2, local=0, sees=["c", "d"], taken=["a", "b", "c", "d"]) == "cuda:0"


def test_no_rank_sees_a_gpu(devices):
    assert devices(0, local=0, sees=[], taken=["", ""]) == "auto"


@pytest.mark.parametrize(
    ("sees", "taken", "message"),
    [
        (["a"], ["a", "a"], "ranks 0 and 1 have the same GPU; start one rank a GPU"),
        (["b"], ["", "b"], "rank 0 sees no GPU, and others do"),
        ([], ["a", ""], "rank 1 sees no GPU, and others do"),
    ],
)
def test_a_gpu_for_some_ranks_only(devices, sees, taken, message):
    with pytest.raises(InputError, match=message):
        devices(1, local=1, sees=sees, taken=taken)
