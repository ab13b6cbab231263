"""The file: types, sizes, order of writing, and what is said of a damaged one."""

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from formats.gguf.checkpoints import LAYERS, gguf_format, in_blocks, rounded, save

from q2n.block_types import BLOCK_TYPES
from q2n.errors import NumericalError
from q2n.formats.gguf.header import read_header
from q2n.formats.gguf.tensor_types import TENSOR_TYPES, decode, encode
from q2n.formats.load import load_model, open_checkpoint
from q2n.layers.by_name import StoredByName
from q2n.models.source import open_source


def write(place: Path, outside: str = "q8_0", layers: Mapping | None = None, **rest) -> Path:
    """The folder that the checkpoint in place / "model" becomes."""
    source = open_source(place / "model")
    gguf_format(outside).write(place / "out", source, layers or {}, **rest)
    return place / "out"


def types_of(folder: Path) -> dict[str, str]:
    places = read_header(folder / "model.gguf").tensors.items()
    return {name: place.kind.name for name, place in places}


@pytest.mark.parametrize(
    ("dtype", "outside", "embedding", "linear"),
    [
        (torch.float32, "q8_0", "Q8_0", "F16"),
        (torch.bfloat16, "q4_0", "Q4_0", "BF16"),
        (torch.float16, "f32", "F32", "F32"),
        (torch.float32, "bf16", "BF16", "BF16"),
        (torch.float16, "q6_k", "Q8_0", "F16"),
        (torch.float16, "q2_0", "Q2_0", "F16"),
    ],
)
def test_types_outside_the_blocks(
    tmp_path: Path, dtype: torch.dtype, outside: str, embedding: str, linear: str
) -> None:
    save(tmp_path / "model", "qwen2", dtype=dtype)
    types = types_of(write(tmp_path, outside))
    assert types["token_embd.weight"] == types["output.weight"] == embedding
    assert types["blk.0.ffn_up.weight"] == types["blk.1.attn_q.weight"] == linear
    assert types["output_norm.weight"] == types["blk.0.attn_q.bias"] == "F32"


def test_tied_weights_are_stored_once(tmp_path: Path) -> None:
    save(tmp_path / "model", tie_word_embeddings=True)
    folder = write(tmp_path)
    assert "output.weight" not in types_of(folder)
    model = load_model(folder)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_rows_that_are_not_whole_blocks_are_noted(tmp_path: Path) -> None:
    save(tmp_path / "model", hidden_size=48, head_dim=12)
    source = open_source(tmp_path / "model")
    notes = gguf_format("q4_0").container.check(source, LAYERS)
    assert notes == [
        f"{name} is stored in F16: blocks of 32 (Q4_0) do not fill its rows of 48"
        for name in ("token_embd.weight", "output.weight")
    ]
    assert gguf_format("f16").container.check(source, LAYERS) == []
    assert types_of(write(tmp_path, "q4_0"))["token_embd.weight"] == "F16"


def test_the_same_types_are_said_and_counted(tmp_path: Path) -> None:
    model = save(tmp_path / "model", "llama")
    layers = in_blocks(model, "q4_0")
    source, container = open_source(tmp_path / "model"), gguf_format("q8_0").container
    said = container.outside_types(source)
    assert (
        said.startswith("Embeddings and output head are in Q8_0, other linears ") and "F32" in said
    )
    kept = container.kept(source, layers)
    embeddings = 2 * model.lm_head.weight.numel()
    assert kept.rounded == embeddings and kept.weights == embeddings + 5 * 64
    assert kept.bits == embeddings * 8.5 + 5 * 64 * 32
    folder = write(tmp_path, "q8_0", layers)
    stored = sum(x.stored_bits for x in layers.values())
    assert container.tensor_bytes(folder) == (kept.bits + stored) / 8
    assert (folder / "model.gguf").stat().st_size > container.tensor_bytes(folder)


@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_every_type_of_blocks_is_read_back(tmp_path: Path, name: str) -> None:
    model = save(tmp_path / "model", hidden_size=256, head_dim=64, intermediate_size=256)
    modules = ("model.layers.0.self_attn.k_proj", "model.layers.1.mlp.down_proj")
    layers = {x: rounded(model.get_submodule(x).weight.detach(), name) for x in modules}
    folder = write(tmp_path, "f16", layers)
    back = load_model(folder)
    for module, layer in layers.items():
        assert torch.equal(back.get_submodule(module).weight, layer.dequantize()), module
    if name == "q2_0":
        return  # younger than gguf-py 0.19
    for tensor in gguf.GGUFReader(folder / "model.gguf").tensors:
        if tensor.name == "blk.1.ffn_down.weight":
            theirs = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    ours = back.model.layers[1].mlp.down_proj.weight
    np.testing.assert_allclose(theirs, ours, rtol=1e-6, atol=1e-7)


def test_layers_are_loaded_in_order_and_once(tmp_path: Path) -> None:
    model = save(tmp_path / "model", "llama")
    read: list[str] = []

    class Lazy(StoredByName):
        inner = in_blocks(model, "q8_0")

        def __getitem__(self, name: str):
            read.append(name)
            return self.inner[name]

        def bits_per_weight(self, name: str) -> float:
            return self.inner[name].bits_per_weight

        def __iter__(self) -> Iterator[str]:
            return iter(self.inner)

        def __len__(self) -> int:
            return len(self.inner)

    write(tmp_path, "q8_0", Lazy())
    expected = [name[:-7] for name, _ in model.named_parameters() if name[:-7] in Lazy.inner]
    assert list(dict.fromkeys(read)) == expected
    assert [name for name in read if name != expected[0]] == expected[1:]  # that says the size


def test_norm_weights_take_the_place_of_the_originals(tmp_path: Path) -> None:
    model = save(tmp_path / "model", "gemma2")
    norm = torch.rand(64)
    model.model.norm.weight.data = norm
    folder = write(tmp_path, "f32", norm_weights={"model.norm.weight": norm})
    torch.testing.assert_close(load_model(folder).model.norm.weight, norm, rtol=0, atol=2**-23)


def test_everything_around_the_file(tmp_path: Path) -> None:
    save(tmp_path / "model", "qwen3", dtype=torch.bfloat16)
    folder = write(tmp_path)
    names = {file.name for file in folder.iterdir()}
    assert {"model.gguf", "config.json", "tokenizer.json", "tokenizer_config.json"} <= names
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["Qwen3ForCausalLM"] and "quantization_config" not in config
    source = open_checkpoint(folder)
    assert source.dtype == torch.bfloat16 and not source.untaken
    assert source.in_model_dtype("model.norm.weight").dtype == torch.bfloat16
    assert len(source.digest()) == 64


def test_the_same_bytes_each_time(tmp_path: Path) -> None:
    save(tmp_path / "model")
    first = (write(tmp_path) / "model.gguf").read_bytes()
    shutil.rmtree(tmp_path / "out")
    assert (write(tmp_path) / "model.gguf").read_bytes() == first


def test_safetensors_beside_it_come_first(tmp_path: Path) -> None:
    model = save(tmp_path / "model")
    shutil.copy(write(tmp_path, "q4_0") / "model.gguf", tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)


def test_numbers_that_no_block_holds_are_refused() -> None:
    for value in (torch.nan, 1e9):
        with pytest.raises(NumericalError, match="embed"):
            encode(torch.full((2, 64), value), TENSOR_TYPES["q4_0"], "embed")


def test_large_tensors_are_worked_on_in_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(10, 64)
    kind = TENSOR_TYPES["q5_1"]
    whole = encode(weight, kind, "x")
    monkeypatch.setattr("q2n.formats.gguf.tensor_types._ENTRIES_AT_ONCE", 192)
    assert torch.equal(encode(weight, kind, "x"), whole)
    assert decode(whole.reshape(-1), kind, (10, 64)).shape == (10, 64)
