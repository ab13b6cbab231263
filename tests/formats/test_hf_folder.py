import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from formats.tiny_models import (
    assert_same_model,
    in_shards,
    llama,
    quantized_in_memory,
    qwen2,
    random_layers,
)
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from q2n.disk.folders import make_working_folder
from q2n.errors import InputError
from q2n.formats import FORMATS
from q2n.formats.hf_folder import HFFolder
from q2n.formats.load import load_model, open_checkpoint
from q2n.layers.by_name import StoredByName
from q2n.layers.uniform import UniformStorage
from q2n.models.source import open_source

DENSE = FORMATS["dequantized"]
FOLDERS = [
    name
    for name, x in FORMATS.items()
    if isinstance(x.container, HFFolder) and x.codec.holds(UniformStorage(bits=4, group_size=32))
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tied", [True, False])
def test_dequantized_is_an_ordinary_checkpoint(
    tmp_path: Path, dtype: torch.dtype, tied: bool
) -> None:
    model = llama(hidden=72, inner=100, tied=tied, dtype=dtype)
    layers = random_layers(model, 3, -1, False, dtype)
    DENSE.write(tmp_path / "out", open_source(model), layers)
    expected = quantized_in_memory(model, layers)
    names: dict = {}
    exec(DENSE.container.loading_example(tmp_path / "out"), names)
    for loaded in (names["model"], load_model(tmp_path / "out")):
        assert loaded.dtype == dtype
        assert_same_model(loaded, expected)
        assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == tied
    assert ("lm_head.weight" in load_file(tmp_path / "out" / "model.safetensors")) != tied


def test_unquantized_checkpoint_is_read_by_the_same_reader(tmp_path: Path) -> None:
    model = qwen2()
    model.save_pretrained(tmp_path / "plain", max_shard_size="40KB")
    assert_same_model(load_model(tmp_path / "plain"), model)
    assert load_model(tmp_path / "plain", dtype=torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize("name", FOLDERS)
def test_everything_around_the_weights(tmp_path: Path, name: str) -> None:
    model = qwen2(torch.float16)
    model.generation_config.max_length = 77
    layers = random_layers(model, 4, 32, False, torch.float16)
    source = open_source(model)
    seen: list[int] = []

    def complete(folder: Path, size: int) -> None:
        assert not (tmp_path / "deep" / "out").exists() and load_model(folder) is not None
        (folder / "README.md").write_text("# card\n")
        seen.append(size)

    format = in_shards(FORMATS[name], 15_000)
    size = format.write(tmp_path / "deep" / "out", source, layers, complete)
    out = tmp_path / "deep" / "out"
    files = list(out.glob("model-*.safetensors"))
    assert len(files) > 2 and list(out.parent.iterdir()) == [out]
    assert (out / "README.md").read_text() == "# card\n"
    config = AutoConfig.from_pretrained(out)
    assert config.architectures == ["Qwen2ForCausalLM"] and config.dtype == torch.float16
    assert load_model(out).generation_config is not None
    assert json.loads((out / "generation_config.json").read_text())["max_length"] == 77
    stored = [t for file in files for t in load_file(file).values()]
    assert seen == [size] == [sum(t.numel() * t.element_size() for t in stored)]
    original = 2 * sum(p.numel() for p in model.parameters())
    assert (size < original) == (name != "dequantized")


def test_layers_are_loaded_in_order_and_once(tmp_path: Path) -> None:
    model = llama()
    read: list[str] = []

    class Lazy(StoredByName):
        inner = random_layers(model, 4, 32, False, torch.float32)

        def __getitem__(self, name: str):
            read.append(name)
            return self.inner[name]

        def bits_per_weight(self, name: str) -> float:
            return self.inner[name].bits_per_weight

        def __iter__(self) -> Iterator[str]:
            return iter(self.inner)

        def __len__(self) -> int:
            return len(self.inner)

    FORMATS["compressed-tensors"].write(tmp_path / "out", open_source(model), Lazy())
    weights = [name.removesuffix(".weight") for name, _ in model.named_parameters()]
    expected = [name for name in weights if name in Lazy.inner]
    assert list(dict.fromkeys(read)) == expected
    assert [name for name in read if name != expected[0]] == expected[1:]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", FOLDERS)
def test_norm_weights_take_the_place_of_the_originals(
    tmp_path: Path, name: str, dtype: torch.dtype
) -> None:
    model = llama(dtype=dtype)
    layers = random_layers(model, 4, 32, False, FORMATS[name].codec.scale_dtype(dtype))
    norm_weights = {
        norm: (0.5 + torch.rand(64)).to(dtype)
        for norm in ("model.layers.1.input_layernorm.weight", "model.norm.weight")
    }
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    FORMATS[name].write(tmp_path / "out", open_source(model), layers, norm_weights=norm_weights)
    stored = load_file(tmp_path / "out" / "model.safetensors")
    loaded = load_model(tmp_path / "out").state_dict()
    for key, tensor in before.items():
        if key.removesuffix(".weight") in layers:
            continue
        expected = norm_weights.get(key, tensor)
        assert torch.equal(loaded[key], expected) and torch.equal(stored[key], expected), key
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize("name", FOLDERS)
def test_the_same_bytes_each_time(tmp_path: Path, name: str) -> None:
    model = llama()
    layers = random_layers(model, 4, 32, False, torch.float16)
    for folder in ("one", "two"):
        FORMATS[name].write(tmp_path / folder, open_source(model), layers)
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes(), file.name


def test_an_existing_folder_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    model = llama()
    layers = random_layers(model, 4, 32, False, torch.float32)
    with pytest.raises(InputError, match="exists already"):
        DENSE.write(tmp_path / "out", open_source(model), layers)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_full_disk_is_seen_before_writing(tmp_path: Path, monkeypatch) -> None:
    # 4 bytes per weight, 3-bit groups of 32 take about an eighth, and a file is there twice.
    model = llama()
    layers = random_layers(model, 3, 32, True, torch.float32)
    small = 4 * sum(p.numel() for p in model.parameters()) * 2 // 3
    usage = shutil._ntuple_diskusage(10**12, 10**12 - small, small)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(InputError, match="GB free"):
        DENSE.write(tmp_path / "dense", open_source(model), layers)
    assert list(tmp_path.iterdir()) == []
    FORMATS["compressed-tensors"].write(tmp_path / "packed", open_source(model), layers)


def test_nothing_is_left_of_a_failed_write(tmp_path: Path, monkeypatch) -> None:
    model = llama()
    layers = random_layers(model, 4, 32, False, torch.float32)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("q2n.formats.shards.save_file", full)
    with pytest.raises(InputError, match="No space left on device"):
        DENSE.write(tmp_path / "out", open_source(model), layers)
    layers["model.layers.7.mlp.up_proj"] = layers["model.layers.0.mlp.up_proj"]
    monkeypatch.undo()
    with pytest.raises(InputError, match="no tensor 'model.layers.7.mlp.up_proj.weight'"):
        DENSE.write(tmp_path / "out", open_source(model), layers)
    assert list(tmp_path.iterdir()) == []


def test_folder_of_a_killed_run_is_replaced(tmp_path: Path) -> None:
    make_working_folder(tmp_path / "out.partial")
    (tmp_path / "out.partial" / "checkpoint").mkdir()
    (tmp_path / "out.partial" / "checkpoint" / "shard-00000.safetensors").write_bytes(b"half")
    model = llama()
    layers = random_layers(model, 4, 32, False, torch.float32)
    DENSE.write(tmp_path / "out", open_source(model), layers)
    assert [f.name for f in tmp_path.iterdir()] == ["out"]
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out") is not None


@pytest.fixture
def written(tmp_path: Path) -> Path:
    model = llama()
    layers = random_layers(model, 4, 32, False, torch.float32)
    out = tmp_path / "out"
    format = in_shards(FORMATS["compressed-tensors"], 100_000)
    format.write(out, open_source(model), layers)
    return out


def test_the_digest_is_that_of_all_weights(written: Path) -> None:
    before = open_checkpoint(written).digest()
    files = json.loads((written / "model.safetensors.index.json").read_text())["weight_map"]
    name = next(x for x in files if x.endswith("weight_packed"))
    tensors = load_file(written / files[name])
    tensors[name][0, 0] += 1
    save_file(tensors, written / files[name], metadata={"format": "pt"})
    assert open_checkpoint(written).digest() != before


def test_a_missing_file_is_named(written: Path) -> None:
    next(written.glob("model-00002*")).unlink()
    with pytest.raises(InputError, match="model-00002-of"):
        load_model(written)


def test_a_truncated_file_is_named(written: Path) -> None:
    file = next(written.glob("model-00001*"))
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InputError, match="model-00001-of.*truncated"):
        load_model(written)


def test_a_missing_tensor_is_named(written: Path) -> None:
    index = written / "model.safetensors.index.json"
    files = json.loads(index.read_text())["weight_map"]
    file = written / files["model.norm.weight"]
    tensors = load_file(file)
    del tensors["model.norm.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    weight_map = {name: f for name, f in files.items() if name != "model.norm.weight"}
    index.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(InputError, match=r"missing.*model\.norm\.weight"):
        load_model(written)


def test_no_config_and_an_unknown_method(written: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere"):
        load_model(tmp_path / "nowhere")
    file = written / "config.json"
    config = json.loads(file.read_text())
    config["quantization_config"]["quant_method"] = "awq"
    file.write_text(json.dumps(config))
    with pytest.raises(InputError, match="'awq'"):
        load_model(written)


@pytest.mark.parametrize("name", ["compressed-tensors", "native"])
def test_packed_checkpoints_run_trusted_code_only(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = str(tmp_path / "modules")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", cache)
    monkeypatch.setattr("sys.path", [*sys.path])
    model = llama()
    layers = random_layers(model, 4, 32, False, torch.float16)
    FORMATS[name].write(tmp_path / "out", open_source(model), layers)
    expected = load_model(tmp_path / "out")
    (tmp_path / "out" / "ours.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class OurConfig(LlamaConfig):\n"
        "    model_type = 'ours'\n"
        "class OurModel(LlamaForCausalLM):\n"
        "    config_class = OurConfig\n"
    )
    file = tmp_path / "out" / "config.json"
    classes = {"AutoConfig": "ours.OurConfig", "AutoModelForCausalLM": "ours.OurModel"}
    config = {**json.loads(file.read_text()), "model_type": "ours", "auto_map": classes}
    file.write_text(json.dumps(config))
    with pytest.raises(InputError, match="trust_remote_code"):
        load_model(tmp_path / "out")
    loaded = load_model(tmp_path / "out", trust_remote_code=True)
    assert type(loaded).__name__ == "OurModel"
    assert_same_model(loaded, expected)
