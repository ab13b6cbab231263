"""Layers that differ in width, from the settings to a loaded checkpoint."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny import save_tiny, tiny_text
from transformers import AutoModelForCausalLM

import q2n
from q2n.errors import InputError
from q2n.formats.load import load_model
from q2n.pipeline.bit_costs import BitCosts
from q2n.pipeline.sequential import SequentialLoop


@pytest.fixture
def run(tmp_path: Path):
    """Quantizes a tiny model."""
    save_tiny(tmp_path / "model", layers=2)
    (tmp_path / "text.txt").write_text(tiny_text())

    def quantize(output="out", **settings):
        plain = {
            "allocate": 4.0,
            "group_size": 32,
            "format": "native",
            "corpus": str(tmp_path / "text.txt"),
            "windows": 4,
            "length": 16,
        }
        return q2n.quantize(tmp_path / "model", tmp_path / output, **{**plain, **settings})

    return quantize


def widths_in(folder: Path) -> dict:
    return yaml.safe_load((folder / "allocation.yaml").read_text())


def tensors(folder: Path) -> dict:
    return load_file(folder / "model.safetensors")


def equal(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[x], other[x]) for x in one)


def test_the_disk_is_asked_for_what_layers_of_several_widths_take(run, tmp_path, monkeypatch):
    """Judged by the first layer alone, it was wrong by up to the ratio of the widths."""
    asked = []
    monkeypatch.setattr(
        "q2n.formats.container.require_space", lambda *given: asked.append(given[1])
    )
    layers = ("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o")
    kept = {f"model.layers.{i}.{name}_proj": 2 for i in range(2) for name in layers}
    rest = {
        f"model.layers.{i}.mlp.{name}_proj": 8 for i in range(2) for name in ("gate", "up", "down")
    }
    (tmp_path / "widths.yaml").write_text(yaml.safe_dump({**kept, **rest}))
    run(allocate=None, allocation=str(tmp_path / "widths.yaml"))
    written = sum(x.numel() * x.element_size() for x in tensors(tmp_path / "out").values())
    assert asked == [pytest.approx(2 * written, rel=0.02)]  # a shard lies on the disk twice


@torch.no_grad()
@pytest.mark.parametrize("form", ["native", "compressed-tensors", "dequantized"])
def test_every_format_holds_the_same_weights(run, tmp_path, form):
    symmetric = form == "compressed-tensors"
    done = run(format=form, symmetric=symmetric)
    widths = widths_in(tmp_path / "out")
    assert len(set(widths.values())) > 1 and len(widths) == 14
    assert 3.5 < done.record["bits_per_weight"] <= 4.0
    run("plain", format="dequantized", symmetric=symmetric)
    tokens = torch.arange(3, 35)[None]
    expected = load_model(tmp_path / "plain")(tokens).logits
    found = load_model(tmp_path / "out")(tokens).logits
    tolerance = 0 if form != "compressed-tensors" else 2e-2  # float16 scales in a float32 model
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    for name, layer in done.record["layers"].items():
        assert widths[name] < layer["bits_per_weight"] < widths[name] + 1.0


@torch.no_grad()
def test_transformers_reads_a_group_for_each_width(run, tmp_path):
    run(format="compressed-tensors", dtype="bfloat16", symmetric=True)
    widths = widths_in(tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    groups = config["config_groups"].values()
    named = {x: group["weights"]["num_bits"] for group in groups for x in group["targets"]}
    assert named == widths
    tokens = torch.arange(3, 35)[None]
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(loaded(tokens).logits, load_model(tmp_path / "out")(tokens).logits)


def test_the_file_gives_the_same_checkpoint_and_can_be_edited(run, tmp_path):
    run()
    file = tmp_path / "out" / "allocation.yaml"
    run("again", allocate=None, allocation=str(file))
    assert equal(tensors(tmp_path / "out"), tensors(tmp_path / "again"))
    name = "model.layers.1.mlp.down_proj"
    text = file.read_text().replace(f"{name}: {widths_in(tmp_path / 'out')[name]}", f"{name}: 8")
    (tmp_path / "mine.yaml").write_text(text)
    run("mine", allocate=None, allocation=str(tmp_path / "mine.yaml"))
    assert widths_in(tmp_path / "mine")[name] == 8
    with pytest.raises(InputError, match="allocation_sha256"):
        run("mine", allocate=None, allocation=str(file), resume=True)


def test_more_bits_cost_less_and_layers_of_one_input_agree(run, tmp_path):
    measured = {}
    for bits in (2.8, 5.0):
        done = run(f"{bits}", allocate=bits, ppl=str(tmp_path / "text.txt"), ppl_windows=4)
        measured[bits] = done.record["fidelity"]["divergence"]
        widths = widths_in(tmp_path / f"{bits}")
        for block in ("model.layers.0", "model.layers.1"):
            assert len({widths[f"{block}.self_attn.{x}_proj"] for x in "qkv"}) == 1
            assert len({widths[f"{block}.mlp.{x}_proj"] for x in ("gate", "up")}) == 1
    assert measured[5.0] < measured[2.8]


def test_a_resumed_run_takes_the_stored_costs(run, tmp_path, monkeypatch):
    run()
    found = []
    plain = BitCosts.__call__
    monkeypatch.setattr(BitCosts, "__call__", lambda *args: found.append(1) or plain(*args))
    with monkeypatch.context() as patch:
        patch.setattr(SequentialLoop, "run", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run("later")
    run("later", resume=True)
    assert found == [1]
    assert equal(tensors(tmp_path / "out"), tensors(tmp_path / "later"))


@pytest.mark.parametrize("method", ["rtn", "quip"])
def test_other_methods(run, tmp_path, method):
    done = run(method=method, group_size=None, format="native", allocate=3.9)
    assert done.record["bits_per_weight"] <= 3.9
    assert len(set(widths_in(tmp_path / "out").values())) > 1


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"bits": 3}, "allocate and bits both say how many bits"),
        ({"allocation": "x.yaml"}, "allocate and allocation both say"),
        ({"allocate": 1.5}, "the smallest width is 2 bits"),
        ({"format": "compressed-tensors"}, "symmetric grids only"),
        ({"method": "pbllm", "group_size": None}, "pbllm has none"),
        ({"format": "gptq_v2"}, "gptq_v2 cannot hold"),
        ({"clip": "learned"}, "one width for all layers"),
        ({"allocate": None, "allocation": "nowhere.yaml"}, "^allocation nowhere.yaml cannot be"),
    ],
)
def test_what_does_not_go_together_is_refused(run, tmp_path, settings, words):
    with pytest.raises(InputError, match=words):
        run(**settings)
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- a", "lists no layers"),
        ("model.layers.0.mlp.up_proj: 5", "has 5; a layer has one of 2, 3, 4, 8"),
        ("model.layers.0.mlp.up_projj: 4", "Did you mean 'model.layers.0.mlp.up_proj'"),
        ("model.layers.0.mlp.up_proj: 4", "has no width for model.layers.0"),
        ("a: [", "is no YAML"),
        ("[" * 3000, "is no YAML"),
    ],
)
def test_a_wrong_file_is_named(run, tmp_path, text, words):
    (tmp_path / "widths.yaml").write_text(text)
    with pytest.raises(InputError, match=words):
        run(allocate=None, allocation=str(tmp_path / "widths.yaml"))
