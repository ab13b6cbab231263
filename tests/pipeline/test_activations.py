"""Where block inputs lie: in memory up to a limit, the others on disk."""

from pathlib import Path

import pytest
import torch
from pipeline.plain_loop import REFIT, CrossMethod, run_loop, token_windows
from tiny import tiny_model

from q2n.evaluation.block_by_block import BlockByBlock
from q2n.models.blocks import BlockwiseModel
from q2n.models.source import open_source
from q2n.pipeline.activations import OnDisk, activations
from q2n.pipeline.options import GIB, LoopOptions

DEVICE = torch.device("cpu")
BATCH = 2 * 16 * 64 * 4
"""Bytes of two windows of 16 tokens, 64 wide, in float32."""


@pytest.fixture
def on_disk(monkeypatch) -> set[Path]:
    """The files that were written."""
    written: set[Path] = set()
    put = OnDisk.put

    def noted(self, batch, hidden):
        written.add(self._file(batch))
        put(self, batch, hidden)

    monkeypatch.setattr(OnDisk, "put", noted)
    return written


@pytest.mark.parametrize("refit", [None, REFIT])
@pytest.mark.parametrize("place", ["device", "cpu"])
def test_a_limit_changes_no_bit_of_results(tmp_path, on_disk, place, refit):
    """Of three batches of two streams, one each lies in memory."""
    how = {"batch_size": 2, "activations": place, "refit": refit}
    method = CrossMethod(bits=3)
    expected = run_loop(tiny_model(), method, tmp_path / "all", **how)
    assert not on_disk
    some = run_loop(
        tiny_model(), method, tmp_path / "some", activations_limit=2.5 * BATCH / GIB, **how
    )
    assert len(on_disk) == 4 and not any(file.exists() for file in on_disk)
    for name, layer in expected.items():
        for part, tensor in layer.tensors().items():
            assert torch.equal(some[name].tensors()[part], tensor), (name, part)


def test_first_batches_stay_in_memory(tmp_path, on_disk):
    held = activations("cpu", DEVICE, tmp_path / "held", limit=2 * BATCH + 1.0)
    batches = [torch.randn(2, 16, 64) for _ in range(4)]
    for turn in (1, 2):
        for number, batch in enumerate(batches):
            held.put(number, turn * batch)
        assert {file.name for file in on_disk} == {
            "batch-00002.safetensors",
            "batch-00003.safetensors",
        }
        assert all(torch.equal(held.get(n), turn * x) for n, x in enumerate(batches))
    held.close()
    assert not any(file.exists() for file in on_disk)


def test_passes_stay_paused_until_disk_is_used(tmp_path):
    held = activations("device", DEVICE, tmp_path / "held", limit=1.0 * BATCH)
    held.put(0, torch.randn(2, 16, 64))
    assert held.keeps_passes
    held.put(1, torch.randn(2, 16, 64))
    assert not held.keeps_passes


def test_evaluation_keeps_the_same_limit(on_disk):
    windows = token_windows()
    whole, limited = (
        torch.cat(list(BlockByBlock(blocks(), windows, limit=limit).states(2)))
        for limit in (None, 1.5 * BATCH / GIB)
    )
    assert len(on_disk) == 2 and torch.equal(whole, limited)


def blocks() -> BlockwiseModel:
    return BlockwiseModel(open_source(tiny_model()))


def test_disk_has_no_place_in_memory():
    assert LoopOptions(activations="disk", activations_limit=3.0).bytes_in_memory == 0
    assert LoopOptions(activations_limit=0.5).bytes_in_memory == 2**29
