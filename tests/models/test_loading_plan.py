"""A source hands out what `from_pretrained` loads, bit for bit, whatever the files call it."""

import pytest
import torch
from mixtures import EXPERTS, MIXTURES
from safetensors.torch import load_file, save_file
from tiny import save_tiny, tiny_model
from transformers import AutoModelForCausalLM

from q2n.errors import InputError
from q2n.models.experts import one_by_one
from q2n.models.source import open_source

READ = ("mixtral", "qwen2_moe", "qwen3_moe", "deepseek_v3", "granitemoe")


def save_mixture(folder, architecture="mixtral"):
    return save_tiny(folder, architecture, layers=2, **EXPERTS, **MIXTURES[architecture])


def edit(folder, **changed):
    """Replace or remove tensors of a one-file checkpoint."""
    file = folder / "model.safetensors"
    tensors = {k: x for k, x in {**load_file(file), **changed}.items() if x is not None}
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.parametrize("architecture", READ)
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
