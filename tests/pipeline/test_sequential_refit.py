"""The block loop with a refit of every block: resume, options, later blocks, refusals."""

import pytest
import torch
from pipeline.plain_loop import (
    REFIT,
    CrossMethod,
    input_of,
    run_loop,
    stored_weight,
    token_windows,
)
from safetensors.torch import load_file
from tiny import tiny_model

from q2n.disk.folders import MARKER
from q2n.errors import InputError, NumericalError
from q2n.methods.gptq import GPTQ
from q2n.methods.rtn import RTN
from q2n.models.blocks import BlockwiseModel
from q2n.models.source import open_source
from q2n.pipeline import block_state
from q2n.pipeline.options import LoopOptions
from q2n.pipeline.sequential import SequentialLoop
from q2n.pipeline.store import RunStore
from q2n.refit.block import BlockRefit
from q2n.refit.tuner import Rates

pytestmark = pytest.mark.slow


def as_stored(model, folder):
    """The model with the stored layers and norms in their places."""
    store = RunStore(folder)
    for name, layer in store.layers().items():
        stored_weight(model, name).copy_(layer.dequantize())
    for name, norm in store.norm_weights().items():
        model.get_parameter(name).data.copy_(norm)
    return model


@pytest.mark.parametrize("method", [RTN(bits=2), GPTQ(bits=2)], ids=["rtn", "gptq"])
@pytest.mark.parametrize("done", [1, 2, 3])
def test_resuming_after_a_refit_gives_the_same_bytes(tmp_path, done, method):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run_loop(tiny_model(), method, whole, refit=REFIT)
    broken.mkdir()
    blocks = [
        f"block-{index:05d}{end}" for index in range(done) for end in (".json", ".safetensors")
    ]
    for name in (MARKER, "run.json", *blocks):
        (broken / name).write_bytes((whole / name).read_bytes())
    run_loop(tiny_model(), method, broken, finished=done, refit=REFIT)
    stores = [RunStore(folder) for folder in (whole, broken)]
    assert len(stores[0].norm_weights()) == 6
    for index in range(3):
        name = f"block-{index:05d}.safetensors"
        assert (whole / name).read_bytes() == (broken / name).read_bytes()
        assert stores[0].read_norm_weights(index).keys() == {
            f"model.layers.{index}.{norm}.weight"
            for norm in ("input_layernorm", "post_attention_layernorm")
        }


@pytest.mark.parametrize(
    "options", [{"activations": "disk"}, {"true_sequential": False}, {"batch_size": 6}]
)
def test_a_refit_does_not_depend_on_loop_options(tmp_path, options):
    """RTN reads no statistics: nothing but the refit could see the difference."""
    plain, other = tmp_path / "plain", tmp_path / "other"
    run_loop(tiny_model(), RTN(bits=2), plain, refit=REFIT)
    run_loop(tiny_model(), RTN(bits=2), other, refit=REFIT, **options)
    for index in range(3):
        name = f"block-{index:05d}.safetensors"
        actual, expected = load_file(other / name), load_file(plain / name)
        assert actual.keys() == expected.keys()
        for key, tensor in actual.items():
            # a batch of another size multiplies in another order
            torch.testing.assert_close(tensor, expected[key], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "opt", "gpt2"])
def test_refitted_blocks_bring_the_last_output_nearer(tmp_path, architecture):
    refit = BlockRefit(steps=24, rates=Rates(scale=0.02, norm=0.02))
    models = {"full": tiny_model(architecture, layers=2)}
    for name, how in (("plain", None), ("refitted", refit)):
        run_loop(tiny_model(architecture, layers=2), RTN(bits=2), tmp_path / name, refit=how)
        models[name] = as_stored(tiny_model(architecture, layers=2), tmp_path / name)
    with torch.no_grad():
        outputs = {
            name: model.base_model(token_windows().tokens, use_cache=False).last_hidden_state
            for name, model in models.items()
        }
    errors = [(outputs[name] - outputs["full"]).square().mean() for name in ("plain", "refitted")]
    assert errors[1] < 0.85 * errors[0]
    facts = RunStore(tmp_path / "refitted").finished()
    assert all(last < first for first, last in (block["refit_loss"] for block in facts))
    assert RunStore(tmp_path / "plain").norm_weights() == {}


@pytest.mark.parametrize("finished", [0, 1])
def test_later_blocks_see_what_the_refit_left(tmp_path, finished):
    """Weights and norms of the refitted blocks are in the inputs of the next one, and the second
    stream is the full-precision model all the same."""
    CrossMethod.seen.clear()
    run_loop(tiny_model(), CrossMethod(bits=2), tmp_path, refit=REFIT)
    if finished:
        (tmp_path / "block-00001.json").unlink()
        CrossMethod.seen.clear()
        run_loop(tiny_model(), CrossMethod(bits=2), tmp_path, finished=1, refit=REFIT)
    name = "model.layers.2.self_attn.q_proj"
    original = tiny_model().model.layers[2].input_layernorm.weight
    quantized = as_stored(tiny_model(), tmp_path)
    quantized.model.layers[2].input_layernorm.weight.data.copy_(original)  # refitted after q
    inputs = [input_of(model, name) for model in (tiny_model(), quantized)]
    # float32 sums of about 100 products each, in another order
    torch.testing.assert_close(
        CrossMethod.seen[name], inputs[0].T @ inputs[1], rtol=1e-4, atol=1e-4
    )


def test_a_refit_without_text_is_refused(tmp_path):
    store = RunStore(tmp_path)
    blocks = BlockwiseModel(open_source(tiny_model()))
    loop = SequentialLoop(blocks, RTN(bits=4), store, LoopOptions(), refit=REFIT)
    with pytest.raises(InputError, match="--corpus"):
        loop.run(None)


def test_a_refit_that_fails_names_the_block(tmp_path):
    refit = BlockRefit(steps=4, rates=Rates(scale=1e30, norm=0.01))
    with pytest.raises(NumericalError, match=r"model\.layers\.0: the loss of gradient step 1"):
        run_loop(tiny_model(), RTN(bits=2), tmp_path, refit=refit)


def test_norms_that_blocks_share_stay(tmp_path):
    """Zamba 2 runs one transformer block at two depths, and has one weight for both."""
    windows, refit = token_windows(1, 8), BlockRefit(steps=1)
    run_loop(tiny_model("zamba2", layers=4), RTN(bits=2), tmp_path, windows=windows, refit=refit)
    assert [*RunStore(tmp_path).norm_weights()] == [
        "model.layers.0.mamba.norm.weight",
        "model.layers.0.input_layernorm.weight",
        "model.layers.1.mamba_decoder.mamba.norm.weight",
        "model.layers.1.mamba_decoder.input_layernorm.weight",
        "model.layers.2.mamba.norm.weight",
        "model.layers.2.input_layernorm.weight",
        "model.layers.3.mamba_decoder.mamba.norm.weight",
        "model.layers.3.mamba_decoder.input_layernorm.weight",
    ]


@pytest.mark.parametrize(
    ("method", "times"), [(GPTQ(bits=3), 1), (CrossMethod(bits=3), 4)], ids=["gram", "cross"]
)
def test_the_full_precision_stream_runs_where_it_is_read(tmp_path, monkeypatch, method, times):
    """With block inputs on disk a pass begins again for each site. Three sites of a block lie
    behind q, and its output does."""
    blocks, ran, plain = [], [0, 0], block_state.PausingBlock

    def watched(block, sites, sampling):
        blocks.append(block)
        block.self_attn.q_proj.register_forward_hook(count)
        return plain(block, sites, sampling)

    def count(linear, *_):
        ran[linear is blocks[1].self_attn.q_proj] += 1

    monkeypatch.setattr(block_state, "PausingBlock", watched)
    refit = BlockRefit(steps=1)
    run_loop(tiny_model(layers=1), method, tmp_path, refit=refit, activations="disk", batch_size=6)
    assert ran[1] == times < ran[0]
