"""Blocks, what they are called with, and their sites, for every architecture."""

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from through_blocks import through_blocks
from tiny import save_tiny, tiny_model

from q2n.errors import InputError, NumericalError
from q2n.models import targets
from q2n.models.blocks import BlockwiseModel
from q2n.models.calls import BlockInput
from q2n.models.sites import find_sites
from q2n.models.source import open_source
from q2n.models.targets import LayerFilter, targets_in


def entry(inputs, index: int) -> BlockInput:
    """The first block's hidden states with the call of another one."""
    return BlockInput(inputs.hidden, inputs.calls[index], inputs.carried)


EXPECTED_SITES = {
    "llama": [{"q_proj", "k_proj", "v_proj"}, {"o_proj"}, {"gate_proj", "up_proj"}, {"down_proj"}],
    "opt": [{"q_proj", "k_proj", "v_proj"}, {"out_proj"}, {"fc1"}, {"fc2"}],
    "gpt_neox": [{"query_key_value"}, {"dense"}, {"dense_h_to_4h"}, {"dense_4h_to_h"}],
    "gpt2": [{"attn.c_attn"}, {"attn.c_proj"}, {"mlp.c_fc"}, {"mlp.c_proj"}],
    "phi3": [{"qkv_proj"}, {"o_proj"}, {"gate_up_proj"}, {"down_proj"}],
}


@pytest.mark.parametrize("architecture", EXPECTED_SITES)
def test_linears_that_read_one_tensor_form_a_site(architecture):
    model = BlockwiseModel(open_source(tiny_model(architecture)))
    probe = next(model.record_inputs([torch.arange(8).unsqueeze(0)]))
    block = model.load_block(1)
    sites = find_sites(block, targets_in(block), entry(probe, 1))
    parts = 2 if architecture == "gpt2" else 1  # both of its projections have one last name
    actual = [{".".join(name.split(".")[-parts:]) for name in site.targets} for site in sites]
    assert actual == EXPECTED_SITES[architecture]
    assert [site.width for site in sites] == [64, 64, 64, 96]


def test_parallel_branches_share_the_input_of_attention():
    """Phi's attention and MLP read the same norm: one site, one Gram."""
    model = BlockwiseModel(open_source(tiny_model("phi")))
    probe = next(model.record_inputs([torch.arange(8).unsqueeze(0)]))
    block = model.load_block(0)
    sites = find_sites(block, targets_in(block), entry(probe, 0))
    first = {name.rsplit(".", 1)[-1] for name in sites[0].targets}
    assert first == {"q_proj", "k_proj", "v_proj", "fc1"}


def test_masks_differ_between_sliding_and_full_blocks(tmp_path):
    """Gemma 2 alternates windows: each block must get its own mask."""
    folder = save_tiny(tmp_path / "model", "gemma2", layers=2, sliding_window=4)
    model = BlockwiseModel(open_source(folder))
    inputs = next(model.record_inputs([torch.arange(12).unsqueeze(0)]))
    hidden, calls = inputs.hidden, inputs.calls
    masks = [call.arguments(hidden, {})[1]["attention_mask"] for call in calls]
    assert masks[0] is not None
    assert masks[1] is None or not torch.equal(masks[0], masks[1])


def test_a_model_object_is_not_changed():
    """Neither its numbers nor its flags nor the hooks that accelerate puts on a block."""
    model = tiny_model().train()
    model.model.norm.eval()
    model.model.layers[1].mlp.up_proj.weight.requires_grad_(False)
    add_hook_to_module(model.model.layers[0], ModelHook())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    forward = model.model.layers[0].forward
    training = {name: module.training for name, module in model.named_modules()}
    trained = {name: tensor.requires_grad for name, tensor in model.named_parameters()}
    blocks = BlockwiseModel(open_source(model))
    next(blocks.record_inputs([torch.arange(8).unsqueeze(0)]))
    for block in (blocks.load_block(0), blocks.load_block(1)):
        assert not block.training and not any(p.requires_grad for p in block.parameters())
        with torch.no_grad():
            for parameter in block.parameters():
                parameter.zero_()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert model.model.layers[0].forward is forward
    assert {name: module.training for name, module in model.named_modules()} == training
    assert {name: tensor.requires_grad for name, tensor in model.named_parameters()} == trained
    with torch.no_grad():
        assert model(input_ids=torch.arange(8).unsqueeze(0)).logits.isfinite().all()


def test_recording_gives_a_block_its_hook_back():
    model = tiny_model()
    add_hook_to_module(model.model.layers[0], ModelHook())
    blocks = BlockwiseModel(open_source(model))
    for _ in range(2):
        next(blocks.record_inputs([torch.arange(8).unsqueeze(0)]))
    assert ["forward" in vars(blocks.load_block(index)) for index in range(3)] == [
        True,
        False,
        False,
    ]


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_changed_block_changes_no_other_copy(tmp_path, in_memory):
    """The full-precision stream runs the original beside the block that is quantized."""
    blocks = BlockwiseModel(open_source(tiny_model() if in_memory else save_tiny(tmp_path / "m")))
    loaded = blocks.load_block(0), blocks.load_block(0)
    with torch.no_grad():
        for parameter in loaded[0].parameters():
            parameter.zero_()
    expected = dict(tiny_model().model.layers[0].named_parameters())
    for copy in (loaded[1], blocks.load_block(0)):
        assert all(torch.equal(p, expected[name]) for name, p in copy.named_parameters())


def test_ignored_linears_are_in_no_site():
    layers = LayerFilter(ignore=("o_proj", "up_proj", "q_proj"))
    model = BlockwiseModel(open_source(tiny_model()), layers=layers)
    probe = next(model.record_inputs([torch.arange(8).unsqueeze(0)]))
    block = model.load_block(1)
    selected, _ = model.targets_of(1, block)
    sites = find_sites(block, selected, entry(probe, 1))
    assert [site.targets for site in sites] == [
        ("self_attn.k_proj", "self_attn.v_proj"),
        ("mlp.gate_proj",),
        ("mlp.down_proj",),
    ]


def test_blocks_without_linears_are_refused(monkeypatch):
    monkeypatch.setattr(targets, "TARGETS", {})
    with pytest.raises(InputError, match="GPT2LMHeadModel.*no linear layer.*Conv1D"):
        BlockwiseModel(open_source(tiny_model("gpt2", layers=2)))


@pytest.mark.gpu
@pytest.mark.parametrize("in_memory", [True, False])
def test_everything_before_the_blocks_is_on_the_device(tmp_path, in_memory):
    """Also rotary frequencies, which no checkpoint stores."""
    source = open_source(tiny_model() if in_memory else save_tiny(tmp_path / "model"))
    blocks = BlockwiseModel(source, "cuda")
    *_, (_, output) = through_blocks(blocks, torch.arange(8).unsqueeze(0))
    hidden = output.hidden
    assert hidden.is_cuda and hidden.isfinite().all()


def test_sharded_and_single_file_checkpoints_hold_the_same(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "many", max_shard_size="40KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2
    one, many = open_source(tmp_path / "one"), open_source(tmp_path / "many")
    assert one.names() == many.names()
    assert all(torch.equal(one.tensor(name), many.tensor(name)) for name in one.names())
    assert one.size_bytes() == many.size_bytes() == 4 * sum(p.numel() for p in model.parameters())


def test_nan_weights_are_named(tmp_path):
    model = tiny_model()
    model.model.layers[1].mlp.up_proj.weight.data[0, 0] = float("nan")
    model.save_pretrained(tmp_path / "model")
    blocks = BlockwiseModel(open_source(tmp_path / "model"))
    blocks.load_block(0)
    with pytest.raises(NumericalError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        blocks.load_block(1)


def test_a_truncated_file_is_named(tmp_path):
    save_tiny(tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InputError, match="model.safetensors"):
        open_source(tmp_path / "model")


def test_a_missing_shard_is_named(tmp_path):
    tiny_model().save_pretrained(tmp_path / "model", max_shard_size="40KB")
    (tmp_path / "model" / "model-00002-of-00005.safetensors").unlink(missing_ok=True)
    lost = sorted((tmp_path / "model").glob("*.safetensors"))[0]
    lost.unlink()
    with pytest.raises(InputError, match=lost.name):
        open_source(tmp_path / "model")


def test_pickled_checkpoints_are_refused(tmp_path):
    save_tiny(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").rename(tmp_path / "model" / "pytorch_model.bin")
    with pytest.raises(InputError, match="pickled"):
        open_source(tmp_path / "model")


def test_a_missing_tensor_is_named(tmp_path):
    from safetensors.torch import load_file, save_file

    save_tiny(tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.0.mlp.up_proj.weight"]
    save_file(tensors, file)
    with pytest.raises(InputError, match=r"model\.layers\.0\.mlp\.up_proj\.weight"):
        open_source(tmp_path / "model")
