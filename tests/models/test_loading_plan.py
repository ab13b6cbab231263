"""A source hands out what `from_pretrained` loads, bit for bit, whatever the files call it."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import save_tiny, tiny_model
from transformers import AutoModelForCausalLM

from q2n.errors import InputError
from q2n.models.experts import one_by_one
from q2n.models.source import open_source

EXPERTS = {"num_local_experts": 4, "num_experts": 4, "n_routed_experts": 4, "moe_num_experts": 4}
LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 16, "qk_nope_head_dim": 16}
SMALL = {"moe_intermediate_size": 32, "shared_expert_intermediate_size": 32, "v_head_dim": 16}
GROUPS = {"n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}
MIXTURES = {
    "mixtral": EXPERTS,
    "qwen2_moe": EXPERTS | SMALL,
    "qwen3_moe": EXPERTS | SMALL,
    "deepseek_v3": EXPERTS | LATENT | SMALL | GROUPS | {"num_experts_per_tok": 2},
    "granitemoe": EXPERTS,
}


def save_mixture(folder, architecture="mixtral"):
    return save_tiny(folder, architecture, layers=2, **MIXTURES[architecture])


def edit(folder, **changed):
    """Replace or remove tensors of a one-file checkpoint."""
    file = folder / "model.safetensors"
    tensors = {k: x for k, x in {**load_file(file), **changed}.items() if x is not None}
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.parametrize("architecture", MIXTURES)
def test_merged_tensors_are_those_that_transformers_loads(tmp_path, architecture):
    folder = save_mixture(tmp_path / "model", architecture)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    loaded = one_by_one(model).state_dict()
    source = open_source(folder, dtype="bfloat16")
    assert set(source.names()) == set(loaded)
    for name in source.names():
        tensor = source.in_model_dtype(name)
        assert tensor.dtype is loaded[name].dtype, name  # some stay in float32
        assert torch.equal(tensor, loaded[name]), name


def test_a_missing_expert_is_named(tmp_path):
    folder = save_mixture(tmp_path / "model")
    edit(folder, **{"model.layers.1.block_sparse_moe.experts.2.w1.weight": None})
    with pytest.raises(InputError, match=r"layers\.1\.mlp\.experts\.gate_up_proj.*MixtralFor"):
        open_source(folder)


def test_an_expert_too_many_is_refused(tmp_path):
    folder = save_mixture(tmp_path / "model")
    extra = {f"model.layers.0.block_sparse_moe.experts.4.w{i}.weight": s for i, s in SHAPES.items()}
    edit(folder, **{key: torch.zeros(shape) for key, shape in extra.items()})
    with pytest.raises(InputError, match=r"experts\.gate_up_proj.* has 5 experts .* asks for 4"):
        open_source(folder)


SHAPES = {1: (96, 64), 2: (64, 96), 3: (96, 64)}


def test_an_old_prefix_is_the_files_business(tmp_path):
    """Files of the base model, without the prefix that the head's class adds."""
    folder = save_tiny(tmp_path / "model", tie_word_embeddings=True)
    file = folder / "model.safetensors"
    save_file({k.removeprefix("model."): x for k, x in load_file(file).items()}, file)
    source = open_source(folder)
    assert source.source_key("model.norm.weight") == "norm.weight"
    assert torch.equal(source.tensor("model.norm.weight"), tiny_model().model.norm.weight)
