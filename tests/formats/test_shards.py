import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from q2n.formats.shards import ShardWriter


def test_one_file_needs_no_index(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path)
    writer.add("a", torch.arange(6).reshape(2, 3))
    writer.finish()
    assert [f.name for f in tmp_path.iterdir()] == ["model.safetensors"]
    assert torch.equal(load_file(tmp_path / "model.safetensors")["a"].flatten(), torch.arange(6))


def test_files_stay_below_limit_and_are_indexed(tmp_path: Path) -> None:
    tensors = {f"t{i}": torch.full((10,), float(i)) for i in range(7)}  # 40 bytes each
    writer = ShardWriter(tmp_path, limit=100)
    for name, tensor in tensors.items():
        writer.add(name, tensor)
    files = writer.finish()
    assert [f.name for f in files] == [f"model-{i:05d}-of-00004.safetensors" for i in (1, 2, 3, 4)]
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == writer.total_bytes == 280
    for name, tensor in tensors.items():
        assert torch.equal(load_file(tmp_path / index["weight_map"][name])[name], tensor)


def test_only_one_file_is_buffered(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, limit=100)
    for i in range(20):
        writer.add(f"t{i}", torch.zeros(10))
        assert sum(t.numel() * 4 for t in writer._buffer.values()) <= 100


def test_tensor_above_the_limit_has_its_own_file(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, limit=100)
    for name, size in (("small", 2), ("large", 500), ("last", 2)):
        writer.add(name, torch.zeros(size))
    assert len(writer.finish()) == 3


def test_a_window_does_not_keep_the_whole_tensor(tmp_path: Path) -> None:
    whole = torch.arange(1000.0)
    writer = ShardWriter(tmp_path)
    writer.add("a", whole[:3])
    writer.add("b", whole.reshape(10, 100).T)
    assert writer._buffer["a"].untyped_storage().nbytes() == 12
    writer.finish()
    loaded = load_file(tmp_path / "model.safetensors")
    assert loaded["a"].tolist() == [0, 1, 2]
    assert torch.equal(loaded["b"], whole.reshape(10, 100).T)
