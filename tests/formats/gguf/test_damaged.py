"""What is said of a GGUF file that is cut short, tampered with, or another model's."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from formats.gguf.checkpoints import gguf_format, in_blocks, save
from transformers import PreTrainedModel

from q2n.errors import InputError, NumericalError
from q2n.formats.gguf.header import read_header
from q2n.formats.load import load_model
from q2n.models.source import open_source


def write(place: Path, layers: dict) -> Path:
    """The folder that the checkpoint in place / "model" becomes."""
    gguf_format("q8_0").write(place / "out", open_source(place / "model"), layers)
    return place / "out"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PreTrainedModel]:
    place = tmp_path_factory.mktemp("whole")
    model = save(place / "model", "llama")
    return write(place, in_blocks(model, "q4_0")), model


def _cut(content: bytearray) -> None:
    del content[-40:]


def _cut_in_header(content: bytearray) -> None:
    del content[3000:]


def _no_magic(content: bytearray) -> None:
    content[:4] = b"GGML"


def _version(content: bytearray) -> None:
    content[4:8] = struct.pack("<I", 9)


def _many_tensors(content: bytearray) -> None:
    content[8:16] = struct.pack("<Q", 2**60)


def _many_entries(content: bytearray) -> None:
    content[16:24] = struct.pack("<Q", 2**60)


def _info(content: bytearray, name: bytes) -> int:
    """Where the number of dimensions of a tensor stands."""
    return content.index(struct.pack("<Q", len(name)) + name) + 8 + len(name)


def _type(content: bytearray) -> None:
    at = _info(content, b"blk.0.ffn_up.weight") + 4 + 16
    content[at : at + 4] = struct.pack("<I", 99)


def _size(content: bytearray) -> None:
    at = _info(content, b"blk.0.ffn_up.weight") + 4
    content[at : at + 8] = struct.pack("<Q", 63)


def _huge(content: bytearray) -> None:
    at = _info(content, b"blk.0.ffn_up.weight") + 4
    content[at : at + 8] = struct.pack("<Q", 2**40)


def _dimensions(content: bytearray) -> None:
    at = _info(content, b"blk.0.ffn_up.weight")
    content[at : at + 4] = struct.pack("<I", 77)


def _place(content: bytearray) -> None:
    at = _info(content, b"blk.0.ffn_up.weight") + 4 + 16 + 4
    content[at : at + 8] = struct.pack("<Q", 2**40)


def _twice(content: bytearray) -> None:
    at = content.index(b"blk.0.ffn_up.weight")
    content[at : at + 19] = b"blk.1.ffn_up.weight"


def _renamed(content: bytearray) -> None:
    at = content.index(b"blk.0.ffn_up.weight")
    content[at : at + 19] = b"blk.7.ffn_up.weight"


def _other_model(content: bytearray) -> None:
    at = content.index(b"general.architecture") + len(b"general.architecture") + 4 + 8
    content[at : at + 5] = b"phi99"


def _length_of_text(content: bytearray) -> None:
    at = content.index(b"general.architecture") + len(b"general.architecture") + 4
    content[at : at + 8] = struct.pack("<Q", 2**50)


def _unknown_entry(content: bytearray) -> None:
    at = content.index(b"general.architecture") + len(b"general.architecture")
    content[at : at + 4] = struct.pack("<I", 77)


DAMAGE: dict[Callable[[bytearray], None], str] = {
    _cut: "cut short: tensor 'output.weight' ends at byte",
    _cut_in_header: "cut short: it ends at byte 3000, within its header",
    _no_magic: "is no GGUF file",
    _version: "GGUF version 9",
    _many_tensors: "cut short|has 0 dimensions",
    _many_entries: "cut short|is of type|list of type",
    _type: "tensor 'blk.0.ffn_up.weight' is of ggml's type 99, .*known are F32, F16",
    _size: "'blk.0.ffn_up.weight' has shape .*63.*, which Q4_0 cannot hold",
    _huge: "cut short: tensor 'blk.0.ffn_up.weight'",
    _dimensions: "'blk.0.ffn_up.weight' has 77 dimensions",
    _place: "cut short: tensor 'blk.0.ffn_up.weight'",
    _twice: "has tensor 'blk.1.ffn_up.weight' twice",
    _renamed: "tensor 'blk.7.ffn_up.weight' has no place",
    _other_model: "holds a 'phi99' model, and config.json says llama",
    _length_of_text: "cut short",
    _unknown_entry: "'general.architecture' is of type 77",
}


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda x: x.__name__)
def test_a_damaged_file_is_answered_in_one_line(
    tmp_path: Path, whole: tuple[Path, PreTrainedModel], damage: Callable[[bytearray], None]
) -> None:
    folder = shutil.copytree(whole[0], tmp_path / "damaged")
    content = bytearray((folder / "model.gguf").read_bytes())
    damage(content)
    (folder / "model.gguf").write_bytes(content)
    with pytest.raises(InputError, match=DAMAGE[damage]) as caught:
        load_model(folder)
    assert "\n" not in str(caught.value) and "model.gguf" in str(caught.value)


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    save(tmp_path / "model", tie_word_embeddings=True)
    folder = write(tmp_path, {})
    config = json.loads((folder / "config.json").read_text())
    config["tie_word_embeddings"] = False
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="no tensor 'lm_head.weight'"):
        load_model(folder)


def test_a_number_that_is_not_finite_is_named(
    tmp_path: Path, whole: tuple[Path, PreTrainedModel]
) -> None:
    folder = shutil.copytree(whole[0], tmp_path / "damaged")
    place = read_header(folder / "model.gguf").tensors["blk.0.ffn_up.weight"]
    with (folder / "model.gguf").open("r+b") as stream:
        stream.seek(place.start)
        stream.write(b"\xff\x7f")  # d is not a number
    with pytest.raises(NumericalError, match="up_proj"):
        load_model(folder)


def test_a_gguf_folder_is_no_model_to_quantize(whole: tuple[Path, PreTrainedModel]) -> None:
    with pytest.raises(InputError, match="model.gguf .* give the checkpoint that it was made from"):
        open_source(whole[0])


def test_bytes_are_never_believed(tmp_path: Path, whole: tuple[Path, PreTrainedModel]) -> None:
    """Any byte of the header changed: the file is read, or refused in one line."""
    folder = shutil.copytree(whole[0], tmp_path / "damaged")
    content = (folder / "model.gguf").read_bytes()
    start = min(x.start for x in read_header(folder / "model.gguf").tensors.values())
    generator = np.random.default_rng(0)
    for at, value in zip(
        generator.integers(0, start, 300), generator.integers(0, 256, 300), strict=True
    ):
        changed = bytearray(content)
        changed[at] = value
        (folder / "model.gguf").write_bytes(changed)
        try:
            read_header(folder / "model.gguf")
        except InputError as refusal:
            assert "\n" not in str(refusal)
