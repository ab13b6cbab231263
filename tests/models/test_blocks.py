"""Blocks, what they are called with, and their sites, for every architecture."""

import pytest
import torch
from tiny import ARCHITECTURES, save_tiny, tiny_model

from q2n.errors import InputError, NumericalError
from q2n.models.blocks import BlockwiseModel
from q2n.models.source import open_source
from q2n.models.stages import find_sites


def hidden_through_blocks(model: BlockwiseModel, tokens: torch.Tensor) -> torch.Tensor:
    inputs = next(model.record_inputs([tokens]))
    hidden = inputs.hidden
    with torch.no_grad():
        for index in range(len(model)):
            call = inputs.calls[index]
            output = model.load_block(index)(hidden, *call.args, **call.kwargs)
            hidden = output if isinstance(output, torch.Tensor) else output[0]
    return hidden


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_blocks_from_disk_compute_what_the_whole_model_does(architecture, tmp_path):
    folder = save_tiny(tmp_path / "model", architecture)
    whole = tiny_model(architecture)
    tokens = torch.randint(3, 128, (2, 24))
    captured = {}
    blocks = BlockwiseModel(open_source(folder))
    last = whole.get_submodule(blocks.block_name(len(blocks) - 1))
    last.register_forward_hook(lambda _, args, out: captured.update(out=out))
    with torch.no_grad():
        whole(input_ids=tokens, use_cache=False)
    expected = captured["out"]
    expected = expected if isinstance(expected, torch.Tensor) else expected[0]
    torch.testing.assert_close(hidden_through_blocks(blocks, tokens), expected, rtol=0, atol=0)


EXPECTED_SITES = {
    "llama": [{"q_proj", "k_proj", "v_proj"}, {"o_proj"}, {"gate_proj", "up_proj"}, {"down_proj"}],
    "opt": [{"q_proj", "k_proj", "v_proj"}, {"out_proj"}, {"fc1"}, {"fc2"}],
    "gpt_neox": [{"query_key_value"}, {"dense"}, {"dense_h_to_4h"}, {"dense_4h_to_h"}],
    "phi3": [{"qkv_proj"}, {"o_proj"}, {"gate_up_proj"}, {"down_proj"}],
}


@pytest.mark.parametrize("architecture", EXPECTED_SITES)
def test_linears_that_read_one_tensor_form_a_site(architecture):
    model = BlockwiseModel(open_source(tiny_model(architecture)))
    probe = next(model.record_inputs([torch.arange(8).unsqueeze(0)]))
    sites = find_sites(model.load_block(1), probe.hidden, probe.calls[1])
    found = [{name.rsplit(".", 1)[-1] for name in site.linears} for site in sites]
    assert found == EXPECTED_SITES[architecture]
    assert [site.width for site in sites] == [64, 64, 64, 96]


def test_parallel_branches_share_the_input_of_attention():
    """Phi's attention and MLP read the same norm: one site, one Gram."""
    model = BlockwiseModel(open_source(tiny_model("phi")))
    probe = next(model.record_inputs([torch.arange(8).unsqueeze(0)]))
    sites = find_sites(model.load_block(0), probe.hidden, probe.calls[0])
    first = {name.rsplit(".", 1)[-1] for name in sites[0].linears}
    assert first == {"q_proj", "k_proj", "v_proj", "fc1"}


def test_masks_differ_between_sliding_and_full_blocks(tmp_path):
    """Gemma 2 alternates windows: each block must get its own mask."""
    folder = save_tiny(tmp_path / "model", "gemma2", layers=2, sliding_window=4)
    model = BlockwiseModel(open_source(folder))
    calls = next(model.record_inputs([torch.arange(12).unsqueeze(0)])).calls
    masks = [call.kwargs["attention_mask"] for call in calls]
    assert masks[0] is not None
    assert masks[1] is None or not torch.equal(masks[0], masks[1])


def test_a_model_object_is_not_changed():
    model = tiny_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    blocks = BlockwiseModel(open_source(model))
    next(blocks.record_inputs([torch.arange(8).unsqueeze(0)]))
    with torch.no_grad():
        for parameter in blocks.load_block(0).parameters():
            parameter.zero_()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    with torch.no_grad():
        assert model(input_ids=torch.arange(8).unsqueeze(0)).logits.isfinite().all()


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
