"""Experts one by one are the experts that transformers runs, and have its names in files."""

import pytest
import torch
from mixtures import FUSED, MIXTURES, matrices, tiny_mixture
from safetensors.torch import load_file
from torch import nn

from q2n.errors import InputError
from q2n.models.blocks import BlockwiseModel
from q2n.models.experts import experts_in, one_by_one, routers
from q2n.models.kept import kept_targets
from q2n.models.skeleton import share_skeleton
from q2n.models.source import assemble, open_source
from q2n.models.targets import LayerFilter, small_targets, targets_in

TOKENS = torch.arange(48).reshape(2, 24) + 3


def logits(model):
    with torch.no_grad():
        return model(input_ids=TOKENS, use_cache=False).logits


@pytest.mark.parametrize("architecture", MIXTURES)
def test_outputs_are_those_of_fused_experts(architecture):
    model = tiny_mixture(architecture)
    single = one_by_one(share_skeleton(model))
    assert any(True for _ in experts_in(single))
    torch.testing.assert_close(logits(single), logits(model), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [1, 3, 4])
def test_groups_of_any_size_compute_the_same(size):
    model = one_by_one(tiny_mixture())
    expected = logits(model)
    for _, experts in experts_in(model):
        experts.group_size = size
    assert torch.equal(logits(model), expected)


def test_linears_are_views_of_the_fused_parameters():
    model = tiny_mixture()
    single = one_by_one(share_skeleton(model))
    for name, matrix in matrices(model).items():
        assert single.get_parameter(name).data_ptr() == matrix.data_ptr()
        assert torch.equal(single.get_parameter(name), matrix)


@pytest.mark.parametrize("architecture", MIXTURES)
def test_a_folder_and_a_model_give_the_same(tmp_path, architecture):
    model = tiny_mixture(architecture)
    model.save_pretrained(tmp_path)
    folder, memory = open_source(tmp_path), open_source(model)
    assert folder.names() == memory.names()
    for name in folder.names():
        assert torch.equal(folder.tensor(name), memory.tensor(name)), name
        assert folder.source_key(name) == memory.source_key(name)
    for name, matrix in matrices(model).items():
        assert torch.equal(folder.tensor(name), matrix)
    torch.testing.assert_close(logits(assemble(folder)), logits(model), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("architecture", MIXTURES)
def test_files_keep_their_names(tmp_path, architecture):
    tiny_mixture(architecture).save_pretrained(tmp_path)
    source, stored = open_source(tmp_path), set(load_file(tmp_path / "model.safetensors"))
    together = {name for names in source.fused.values() for name in names}
    assert bool(together) == (architecture in FUSED)
    single = {source.source_key(name) for name in source.names() if name not in together}
    assert single | set(source.fused) == stored


@pytest.mark.parametrize("architecture", ["qwen2_moe", "phimoe", "deepseek_v3"])
def test_what_chooses_experts_is_no_target(architecture):
    model = BlockwiseModel(open_source(tiny_mixture(architecture)))
    chosen = {name for name in model.targets() if not name.count(".experts.")}
    assert not any(name.endswith((".gate", ".router", "expert_gate")) for name in chosen)


def test_a_wide_router_is_found_by_its_place():
    model = one_by_one(tiny_mixture())
    block = model.model.layers[0]
    block.mlp.chooser = nn.Linear(64, 4)
    assert routers(block) == {"mlp.gate", "mlp.chooser"}
    assert "they choose among" in kept_targets({"blocks.0": block})["blocks.0.mlp.chooser"]


def test_experts_are_small_only_all_together():
    block = one_by_one(
        tiny_mixture(num_experts=64, num_local_experts=64, moe_intermediate_size=8)
    ).model.layers[0]
    small = small_targets({"": block})
    assert not any("experts" in name for name in small)
    assert targets_in(block)["mlp.experts.3.up_proj"].experts == 64


def test_an_unknown_layout_is_refused_before_work():
    model = tiny_mixture()
    for block in model.model.layers:
        block.mlp.experts.scale = nn.Parameter(torch.ones(4))
    with pytest.raises(InputError, match=r"layers\.0\.mlp\.experts: Qwen3MoeExperts.*layout"):
        BlockwiseModel(open_source(model))
    left = BlockwiseModel(open_source(model), layers=LayerFilter(ignore=("*.mlp.experts",)))
    assert all("self_attn" in name for name in left.targets())
