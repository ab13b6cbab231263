import gc
import json
import weakref
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

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


DTYPES = (torch.float32, torch.bfloat16, torch.uint8, torch.int64, torch.bool, torch.float8_e4m3fn)
SHAPES = ((), (5, 3), (0, 4), (7,))


def test_a_file_equals_that_of_the_library(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        f"{i % 5}.{shape}{dtype}": torch.randint(0, 9, shape, generator=generator).to(dtype)
        for i, (shape, dtype) in enumerate((s, d) for d in DTYPES for s in SHAPES)
    }
    writer = ShardWriter(tmp_path)
    for name, tensor in tensors.items():
        writer.add(name, tensor)
    (file,) = writer.finish()
    expected = tmp_path / "expected.safetensors"
    save_file(tensors, expected, metadata={"format": "pt"})
    assert file.read_bytes() == expected.read_bytes()


def test_no_tensor_stays_in_memory(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path)
    tensor = torch.zeros(10)
    alive = weakref.ref(tensor)
    writer.add("a", tensor)
    del tensor
    gc.collect()
    assert alive() is None
    writer.finish()


def test_nothing_has_a_name_before_the_end(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path)
    writer.add("a", torch.zeros(10))
    assert list(tmp_path.iterdir()) == []


def test_tensor_above_the_limit_has_its_own_file(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, limit=100)
    for name, size in (("small", 2), ("large", 500), ("last", 2)):
        writer.add(name, torch.zeros(size))
    assert len(writer.finish()) == 3


def test_windows_of_a_tensor_are_written(tmp_path: Path) -> None:
    whole = torch.arange(1000.0)
    writer = ShardWriter(tmp_path)
    writer.add("a", whole[:3])
    writer.add("b", whole.reshape(10, 100).T)
    writer.finish()
    loaded = load_file(tmp_path / "model.safetensors")
    assert loaded["a"].tolist() == [0, 1, 2]
    assert torch.equal(loaded["b"], whole.reshape(10, 100).T)


def test_files_have_the_usual_mode(tmp_path):
    (tmp_path / "plain").touch()
    writer = ShardWriter(tmp_path, 1000)
    writer.add("a", torch.ones(3))
    (file,) = writer.finish()
    assert file.stat().st_mode == (tmp_path / "plain").stat().st_mode
