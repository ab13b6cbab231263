"""DeepSeekMoE, of which transformers has no model, against a forward pass in numpy."""

import json

import numpy as np
import pytest
import torch
from oracles.deepseek import logits
from safetensors.torch import load_file
from tiny import save_tiny, tiny_model
from transformers import AutoModelForCausalLM, CompressedTensorsConfig

import q2n
from q2n.errors import InputError
from q2n.formats.load import load_model
from q2n.models.deepseek import DeepseekForCausalLM
from q2n.models.experts import one_by_one
from q2n.models.source import assemble, open_source

SIZES = {
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 32,
    "num_key_value_heads": 4,
    "layers": 3,
}
TOKENS = [3, 77, 12, 45, 45, 9, 120, 31, 8, 64]


@pytest.mark.parametrize("normalized", [False, True])
def test_logits_are_those_of_the_definition(tmp_path, normalized):
    folder = save_tiny(tmp_path, "deepseek", norm_topk_prob=normalized, **SIZES)
    config = json.loads((folder / "config.json").read_text())
    stored = load_file(folder / "model.safetensors")
    tensors = {key: x.double().numpy() for key, x in stored.items()}
    model = assemble(open_source(folder))
    assert isinstance(model, DeepseekForCausalLM)
    with torch.no_grad():
        ours = model(torch.tensor([TOKENS])).logits[0]
    np.testing.assert_allclose(ours.numpy(), logits(tensors, config, TOKENS), rtol=1e-4, atol=1e-4)


def test_a_published_config_is_read(tmp_path):
    """Entries of the 16B model's config.json, which names code that is never run."""
    folder = save_tiny(tmp_path, "deepseek", **SIZES)
    config = json.loads((folder / "config.json").read_text())
    del config["rope_parameters"], config["head_dim"]
    config |= {
        "auto_map": {"AutoModelForCausalLM": "modeling_deepseek.DeepseekForCausalLM"},
        "aux_loss_alpha": 0.001,
        "rope_theta": 10000,
        "rope_scaling": None,
        "seq_aux": True,
    }
    (folder / "config.json").write_text(json.dumps(config))
    names = open_source(folder).names()
    assert "model.layers.0.mlp.gate_proj.weight" in names
    assert "model.layers.2.mlp.experts.7.down_proj.weight" in names


def test_other_scores_are_refused():
    with pytest.raises(Exception, match="scoring_func is 'sigmoid'"):
        tiny_model("deepseek", **SIZES, scoring_func="sigmoid")


@pytest.mark.slow
def test_a_packed_checkpoint_has_the_names_that_vllm_reads(tmp_path):
    folder = save_tiny(tmp_path / "model", "deepseek", **SIZES)
    q2n.quantize(
        folder, tmp_path / "out", method="rtn", bits=4, group_size=32, symmetric=True, dtype="half"
    )
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert "model.layers.1.mlp.experts.7.gate_proj.weight_packed" in stored
    assert "model.layers.1.mlp.shared_experts.up_proj.weight_packed" in stored
    assert "model.layers.1.mlp.gate.weight" in stored
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["DeepseekForCausalLM"]
    assert "model.layers.1.mlp.gate" in config["quantization_config"]["ignore"]
    dense = CompressedTensorsConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", quantization_config=dense)
    theirs, ours = one_by_one(model).state_dict(), load_model(tmp_path / "out").state_dict()
    assert theirs.keys() == ours.keys()
    for name, weight in ours.items():
        assert torch.equal(theirs[name], weight), name


def test_unknown_model_types_are_still_refused(tmp_path):
    folder = save_tiny(tmp_path)
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "deepseek_v99"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="deepseek_v99"):
        open_source(folder)
