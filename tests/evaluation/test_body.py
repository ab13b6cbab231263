"""A model in two parts is the model to the bit, and the head does not hold its blocks."""

import gc
import weakref

import pytest
import torch
from evaluation.test_perplexity import CONFIGS, SMALL, random_windows
from transformers import AutoModelForCausalLM, Gemma2Config, GraniteConfig

from q2n.evaluation.body import Whole
from q2n.models.head import Head, WholeHead

PARTS = {
    **CONFIGS,
    # Logits divided after the head.
    "granite": GraniteConfig(
        **SMALL, intermediate_size=48, logits_scaling=8.0, initializer_range=0.2
    ),
    "tied": Gemma2Config(
        **SMALL, intermediate_size=48, head_dim=16, num_key_value_heads=1, initializer_range=0.5
    ),
}


def model_of(config):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("name", PARTS)
def test_head_on_states_is_the_model(name):
    model, windows = model_of(PARTS[name]), random_windows()
    with torch.inference_mode():
        body = Whole(model, windows)
        assert isinstance(body.head, Head)
        for states, row in zip(body.states(batch_size=1), windows.tokens, strict=True):
            assert torch.equal(body.head(states), model(row[None]).logits[0])


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_head_outlives_the_model(name):
    model, windows = model_of(PARTS[name]), random_windows()
    with torch.inference_mode():
        expected = model(windows.tokens[:1]).logits[0]
        body = Whole(model, windows)
        states, head = next(iter(body.states(1))), body.head
        gone = weakref.ref(model.base_model.layers[0])
        del model, body
        gc.collect()
        assert gone() is None
        assert torch.equal(head(states), expected)


def test_a_body_that_cannot_be_replaced_is_run_whole(monkeypatch):
    model, windows = model_of(CONFIGS["llama"]), random_windows(count=2)
    monkeypatch.setattr(Head, "__call__", lambda self, states: states)
    with torch.inference_mode():
        body = Whole(model, windows)
        assert isinstance(body.head, WholeHead)
        for states, row in zip(body.states(batch_size=1), windows.tokens, strict=True):
            assert torch.equal(body.head(states), model(row[None]).logits[0])
