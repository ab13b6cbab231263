"""Models with state-space or linear-attention layers, quantized, written and loaded again."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import save_tiny, tiny_model, tiny_text, tiny_tokenizer
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

import q2n
from q2n.errors import InputError
from q2n.formats.load import load_model

MIXER = {"in_proj", "out_proj"}
MLP = {"gate_proj", "up_proj", "down_proj"}
ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
QUANTIZED = {
    "mamba": {*MIXER, "x_proj"},
    "falcon_mamba": {*MIXER, "x_proj"},
    "mamba2": MIXER,
    "jamba": {*MIXER, "x_proj", *MLP, *ATTENTION},
    "bamba": {*MIXER, *MLP, *ATTENTION},
    "falcon_h1": {*MIXER, *MLP, *ATTENTION},
    "granitemoehybrid": {*MIXER, "input_linear", "output_linear", *ATTENTION},
    "nemotron_h": {*MIXER, "up_proj", "down_proj", *ATTENTION},
    "zamba": {*MIXER, "linear"},
    "zamba2": {*MIXER, "linear"},
    "qwen3_next": {"in_proj_qkvz", "out_proj", *MLP, *ATTENTION},
    "qwen3_5_text": {"in_proj_qkv", "in_proj_z", "out_proj", *MLP, *ATTENTION},
}
"""Last names of the linears that are quantized."""
LEFT = {
    "mamba": {"dt_proj"},
    "falcon_mamba": {"dt_proj"},
    "jamba": {"dt_proj"},
    "zamba": {*MLP, *ATTENTION},
    "zamba2": {"gate_up_proj", "down_proj", *ATTENTION, "0", "1"},
    "qwen3_next": {"in_proj_ba"},
    "qwen3_5_text": {"in_proj_a", "in_proj_b"},
}
"""Of those that are not. What Zamba's blocks share is an attention and an MLP with adapters."""
TOKENS = torch.arange(24).reshape(2, 12)


def quantize(place: Path, output: str, **settings):
    (place / "text.txt").write_text(tiny_text(100))
    own = {"method": "gptq", "nullspace": True, "bits": 4, "group_size": 32, "symmetric": True}
    text = {"corpus": str(place / "text.txt"), "windows": 2, "length": 16}
    return q2n.quantize(place / "model", place / output, **{**text, **own, **settings})


def last_names(names: list[str]) -> set[str]:
    return {name.rpartition(".")[2] for name in names}


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS).logits


def dense_weights(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Of modules that have one: packed ones are compared by what they compute."""
    return {
        name: module.weight
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Embedding)
    }


@pytest.mark.parametrize(
    "architecture",
    [x if x in ("mamba", "zamba2") else pytest.param(x, marks=pytest.mark.slow) for x in QUANTIZED],
)
def test_the_right_linears_are_quantized_and_load(architecture: str, tmp_path: Path) -> None:
    """In bfloat16, as models are published, but for native, whose own kernels sum in float32."""
    original = tiny_model(architecture, layers=4)
    original.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    for name in ("dequantized", "native", "compressed-tensors"):
        dtype = torch.float32 if name == "native" else torch.bfloat16
        done = quantize(tmp_path, name, format=name, dtype=str(dtype).removeprefix("torch."))
        assert last_names(done.record["layers"]) == QUANTIZED[architecture]
        assert last_names(done.record["ignored"]) == LEFT.get(architecture, set())
        assert done.record["left_in_full_precision"] == []
        theirs, found = AutoModelForCausalLM.from_pretrained(
            tmp_path / name, output_loading_info=True
        )
        ours = load_model(tmp_path / name)
        assert not any(found.values()) and type(theirs) is type(ours) is type(original)
        assert torch.equal(logits(theirs), logits(ours))
        expected, before = dense_weights(ours), dense_weights(original)
        for k, weight in dense_weights(theirs).items():
            assert torch.equal(weight, expected[k]), k
        for k, weight in expected.items():
            kept = torch.equal(weight, before[k].to(dtype))
            assert kept is (k not in done.record["layers"]), k


def test_a_step_of_odd_rank_fits_any_groups(tmp_path: Path) -> None:
    """The 20 columns of `dt_proj` are not divided by groups of 32, and need not be."""
    save_tiny(tmp_path / "model", "mamba")
    done = quantize(tmp_path, "out", format="dequantized")
    note = next(note for note in done.record["notes"] if "dt_proj" in note)
    assert "backbone.layers.*.mixer.dt_proj (their mixer takes the weight" in note


def test_a_linear_that_is_never_called_is_listed(tmp_path: Path) -> None:
    """Asked for by name, it stays as it is all the same: there is no input to quantize it by."""
    save_tiny(tmp_path / "model", "mamba")
    done = quantize(tmp_path, "out", only=("*.dt_proj", "*.x_proj"), group_size=-1)
    steps = [f"backbone.layers.{number}.mixer.dt_proj" for number in range(3)]
    assert done.record["left_in_full_precision"] == steps
    assert last_names(done.record["layers"]) == {"x_proj"}


def test_gates_are_quantized_if_asked_for(tmp_path: Path) -> None:
    save_tiny(tmp_path / "model", "qwen3_next", layers=4)
    done = quantize(tmp_path, "out", only=("in_proj_ba",))
    assert last_names(done.record["layers"]) == {"in_proj_ba"}


def test_shared_blocks_are_refused_alone(tmp_path: Path) -> None:
    save_tiny(tmp_path / "model", "zamba2", layers=4)
    with pytest.raises(InputError, match="Zamba2ForCausalLM: several of its blocks share"):
        quantize(tmp_path, "out", only=("q_proj",))


def test_formats_refuse_mixers_that_look_for_weights(tmp_path: Path) -> None:
    save_tiny(tmp_path / "model", "mamba")
    with pytest.raises(InputError, match="MambaForCausalLM is not loaded from gptq_v2.*mixer"):
        quantize(tmp_path, "out", format="gptq_v2", only=("in_proj", "out_proj"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["dequantized", "native", "compressed-tensors"])
def test_predicting_layers_are_copied(name: str, tmp_path: Path) -> None:
    """transformers drops `mtp.*` on loading; other readers predict with them."""
    save_tiny(tmp_path / "model", "qwen3_next", layers=4)
    file = tmp_path / "model" / "model.safetensors"
    more = {
        "mtp.fc.weight": torch.randn(64, 128),
        "mtp.layers.0.mlp.up_proj.weight": torch.randn(96, 64),
    }
    save_file({**load_file(file), **more}, file, {"format": "pt"})
    quantize(tmp_path, "out", format=name)
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(written[key], tensor) for key, tensor in more.items())
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(logits(theirs), logits(load_model(tmp_path / "out")))
