"""Tensors of a safetensors file are read from their places, as the library reads them."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from q2n.errors import InputError
from q2n.models.checkpoint_files import TensorFiles
from q2n.models.tensor_file import DTYPES, read_places, read_tensor

MAPS = Path("/proc/self/maps")
STORED = [dtype for dtype in DTYPES.values() if dtype != torch.float8_e8m0fnu]  # load_file has none


@pytest.fixture
def file(tmp_path: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        f"{len(shape)}{dtype}": torch.randint(0, 9, shape, generator=generator).to(dtype)
        for dtype in STORED
        for shape in ((), (3,), (2, 5), (0, 4), (4, 2, 3))
    }
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    return tmp_path / "model.safetensors"


def _bytes(tensor: torch.Tensor) -> list[int]:
    return tensor.reshape(-1).view(torch.uint8).tolist()


def test_every_tensor_is_as_the_library_reads_it(file: Path) -> None:
    expected = load_file(file)
    places = read_places(file)
    assert list(places) == sorted(expected)
    for name, place in places.items():
        tensor = read_tensor(file, place)
        assert (tensor.dtype, tensor.shape) == (expected[name].dtype, expected[name].shape)
        assert place.size == tensor.numel() * tensor.element_size()
        assert _bytes(tensor) == _bytes(expected[name]), name


def test_one_entry_is_read_by_itself(file: Path) -> None:
    for name, place in read_places(file).items():
        for index in range(place.shape[0] if place.shape else 0):
            expected = load_file(file)[name][index]
            assert read_tensor(file, place, index).tolist() == expected.tolist(), name


def test_what_is_read_may_be_changed(file: Path) -> None:
    files = TensorFiles(file.parent)
    name = "2torch.float32"
    files.tensor(name).zero_()
    files.entry(name, 0).zero_()
    assert torch.equal(files.tensor(name), load_file(file)[name])


def test_a_file_shortened_later_is_named(file: Path) -> None:
    files, places = TensorFiles(file.parent), read_places(file)
    last = max(places, key=lambda name: places[name].start + places[name].size)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"model\.safetensors: tensor .* ends early"):
        files.tensor(last)
    file.unlink()
    with pytest.raises(InputError, match="No such file"):
        files.tensor(last)


@pytest.mark.skipif(not MAPS.exists(), reason="needs Linux's list of mapped files")
def test_no_file_is_mapped(file: Path) -> None:
    files = TensorFiles(file.parent)
    held = [files.tensor(name) for name in files.file_of]
    assert str(file) not in MAPS.read_text() and len(held) == len(files.file_of)


def test_a_kind_unknown_here_is_named(file: Path) -> None:
    place = replace(read_places(file)["1torch.uint8"], dtype="F6_E3M2")
    with pytest.raises(ValueError, match="F6_E3M2"):
        read_tensor(file, place)
