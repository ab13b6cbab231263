"""The rotated model computes what the original one does; the runtime parts do what they say."""

import json

import pytest
import torch
from rotatable import MODELS, model_of, tokens
from tiny import tiny_model

from q2n.data.corpora import load_corpus
from q2n.data.tokenizer import load_tokenizer
from q2n.data.windows import evaluation_windows
from q2n.errors import InputError
from q2n.grids.per_token import TokenGrid
from q2n.models.rotated_source import changed_source
from q2n.models.source import assemble, open_source
from q2n.transforms.kv_cache import round_cache
from q2n.transforms.model_changes import ModelChanges
from q2n.transforms.runtime import RuntimeParts, attach, attach_quantizers

pytestmark = pytest.mark.slow


CACHE = {"kv_bits": 4, "kv_clip_ratio": 1.0}


@pytest.mark.parametrize("rotation", ["hadamard", "random"])
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_the_rotated_model_gives_the_same_logits(name, rotation, monkeypatch):
    model = model_of(name)
    source = changed_source(open_source(model), ModelChanges(rotate=rotation, **CACHE), 3)
    expected = model(tokens()).logits
    rotated = assemble(source)
    assert rotated.get_input_embeddings().weight is not rotated.get_output_embeddings().weight
    # logits are about 4; float32 rounding through three blocks
    torch.testing.assert_close(rotated(tokens()).logits, expected, rtol=0, atol=2e-5)
    # with R3, but nothing rounded
    monkeypatch.setattr(TokenGrid, "quantize", lambda self, x: x)
    attach_quantizers(rotated, source.runtime)
    torch.testing.assert_close(rotated(tokens()).logits, expected, rtol=0, atol=2e-5)
    torch.testing.assert_close(model(tokens()).logits, expected, rtol=0, atol=0)  # untouched


@torch.no_grad()
def test_real_weights_on_real_text(smollm2_head):
    """Two blocks of SmolLM2: 9 heads, so a Haar matrix in front of o."""
    original = open_source(smollm2_head, dtype="float32")
    windows = evaluation_windows(
        load_corpus("sotu", "test"), load_tokenizer(smollm2_head), length=128, limit=1
    )
    source = changed_source(original, ModelChanges(rotate="hadamard"), 0)
    kinds = [[f.kind for f in rotation.factors] for rotation in source.runtime.rotated.values()]
    assert kinds == [["dense", "identity"], ["hadamard", "hadamard"]]
    expected = assemble(original)(windows.tokens).logits
    found = assemble(source)(windows.tokens).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)  # logits up to 40


@torch.no_grad()
def test_norm_weights_become_one_and_stream_is_mixed():
    model = model_of("tied")
    with torch.no_grad():
        model.get_input_embeddings().weight[:, 5] *= 100  # an outlying channel
    source = changed_source(open_source(model), ModelChanges(rotate="hadamard"), 0)
    rotated = assemble(source)
    norms = [x for name, x in rotated.named_parameters() if "norm" in name]
    assert len(norms) == 7 and all((norm == 1).all() for norm in norms)
    embeddings = rotated.get_input_embeddings().weight
    by_channel = embeddings.square().mean(0)
    assert by_channel.max() < 2 * by_channel.min()
    assert source.config.tie_word_embeddings is False and model.config.tie_word_embeddings
    assert set(source.names()) == set(dict(rotated.named_parameters()))
    assert source.size_bytes() == sum(x.nbytes for x in rotated.parameters())


@torch.no_grad()
def test_runtime_parts_survive_json():
    source = changed_source(
        open_source(model_of("9 heads")),
        ModelChanges(rotate="hadamard", activation_bits=4, **CACHE),
        0,
    )
    one, other = assemble(source), assemble(source)
    attach_quantizers(one, source.runtime)
    parts = RuntimeParts.from_json(json.loads(json.dumps(source.runtime.to_json())))
    attach_quantizers(other, parts)
    logits = one(tokens()).logits
    assert torch.equal(other(tokens()).logits, logits)
    plain = assemble(source)
    for module in plain.modules():
        module._forward_pre_hooks.clear()
    attach(plain, parts)
    assert torch.equal(plain(tokens()).logits, logits)


@torch.no_grad()
def test_only_linears_of_blocks_read_rounded_inputs():
    parts = ModelChanges(activation_bits=3, activation_clip_ratio=1.0)
    source = changed_source(open_source(model_of()), parts, 0)
    model = assemble(source)
    attach_quantizers(model, source.runtime)
    levels = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(
                lambda _, args, name=name: levels.update({name: len(args[0][0, 0].unique())})
            )
    model(tokens())
    assert len(levels) == 3 * 7 + 1
    assert levels.pop("lm_head") > 8
    assert all(count <= 8 for count in levels.values())


@torch.no_grad()
def test_cache_rounding_is_equal_at_once_or_stepwise():
    source = changed_source(open_source(model_of()), ModelChanges(rotate="hadamard", **CACHE), 0)
    model = assemble(source)
    exact = model(tokens()).logits
    attach_quantizers(model, source.runtime)
    rounded = model(tokens()).logits
    assert (rounded - exact).abs().max() > 0.01
    text, past, stepwise = tokens(), None, []
    for position in range(text.shape[1]):
        output = model(text[:, position : position + 1], past_key_values=past, use_cache=True)
        past = output.past_key_values
        stepwise.append(output.logits)
    # another order of summation now and then moves a key across a rounding border
    assert ((torch.cat(stepwise, 1) - rounded).abs() < 1e-4).float().mean() > 0.9


def test_what_cannot_be_rotated_is_refused():
    for architecture, match in (
        ("gemma", "GemmaRMSNorm is not norm weight"),
        ("gemma2", "post_feedforward_layernorm"),
        ("phi3", "gate_up_proj"),
        ("opt", "embed_positions"),
    ):
        with pytest.raises(InputError, match=match):
            changed_source(open_source(tiny_model(architecture)), ModelChanges(rotate="random"), 0)
    source = open_source(tiny_model())
    assert changed_source(source, ModelChanges(), 0) is source
    for changes, match in (
        ({"kv_bits": 4, "kv_group_size": 12}, "12 do not divide the 16 values of a head"),
        ({"activation_bits": 4, "activation_group_size": 48}, "48 do not divide the 64 values"),
    ):
        with pytest.raises(InputError, match=match):
            changed_source(source, ModelChanges(**changes), 0)
    source = changed_source(source, ModelChanges(rotate="hadamard"), 0)
    with pytest.raises(InputError, match="no module 'model.layers"):
        attach(torch.nn.Linear(2, 2), source.runtime)


def test_an_attention_that_cannot_be_wrapped_is_refused():
    source = changed_source(open_source(tiny_model()), ModelChanges(**CACHE), 0)
    model = assemble(source)
    model.config._attn_implementation_internal = "unheard"
    with pytest.raises(InputError, match="attention 'unheard'"):
        attach_quantizers(model, source.runtime)
    with pytest.raises(InputError, match="whole transformers model"):
        round_cache(model.model.layers[0], [], TokenGrid(), None)


@pytest.mark.parametrize("rotation", ["hadamard", "random"])
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_weights_alone_hold_a_rotation_that_is_not_online(name, rotation):
    model = model_of(name)
    changes = ModelChanges(rotate=rotation, rotate_online=False)
    source = changed_source(open_source(model), changes, 3)
    rotated = assemble(source)
    assert source.runtime is None
    assert not any(module._forward_pre_hooks for module in rotated.modules())
    expected = model(tokens()).logits
    torch.testing.assert_close(rotated(tokens()).logits, expected, rtol=0, atol=2e-5)
    for weight in ("self_attn.v_proj", "self_attn.o_proj", "mlp.down_proj", "mlp.up_proj"):
        name = f"model.layers.1.{weight}.weight"
        assert (source.tensor(name) - model.get_parameter(name)).abs().max() > 0.01
    # down's inputs are as they were: its rows alone are rotated
    down = "model.layers.1.mlp.down_proj.weight"
    turned, plain = source.tensor(down), model.get_parameter(down)
    torch.testing.assert_close(turned.T @ turned, plain.T @ plain, rtol=1e-4, atol=1e-4)


def test_another_rotation_has_another_digest():
    model = open_source(model_of())
    digests = {
        changed_source(model, ModelChanges(rotate="hadamard", rotate_online=online), seed).digest()
        for online in (True, False)
        for seed in (0, 1)
    }
    assert len(digests) == 4
