"""What llama.cpp would compute otherwise is refused by name, before anything is written."""

from pathlib import Path

import pytest
import torch
from formats.gguf.checkpoints import (
    CONFIGS,
    LAYERS,
    VOCABULARY,
    byte_level,
    fast,
    gguf_format,
    save,
)
from tiny import save_tiny, tiny_model
from transformers import PreTrainedModel

from q2n.errors import InputError
from q2n.formats import FORMATS
from q2n.formats.gguf.architecture import ARCHITECTURES
from q2n.layers.blocks import BlockStorage
from q2n.models.source import open_source


def _checked(model: PreTrainedModel, place: Path) -> list[str]:
    model.save_pretrained(place)
    fast(byte_level()).save_pretrained(place)
    return gguf_format("q8_0").container.check(open_source(place), LAYERS)


def _tiny(architecture: str, **options) -> PreTrainedModel:
    options = {"layers": 2, **CONFIGS[architecture], **options}
    return tiny_model(architecture, vocab_size=VOCABULARY, **options)


def _rope(**entries) -> dict:
    return {"rope_parameters": {"rope_theta": 1e4, **entries}}


_YARN = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64}
REFUSED = {
    "activation is .gelu., and there it is silu": ("llama", {"hidden_act": "gelu"}),
    ".gelu., and there .* gelu_pytorch_tanh": ("gemma2", {"hidden_activation": "gelu"}),
    "4 heads of 32 are not as wide as hidden_size 64": ("phi3", {"head_dim": 32}),
    "query_pre_attn_scalar is 256, and there it is 16": (
        "gemma3_text",
        {"query_pre_attn_scalar": 256},
    ),
    "no attn_logit_softcapping": ("gemma2", {"attn_logit_softcapping": None}),
    "attn_logit_softcapping is 50": ("gemma3_text", {"attn_logit_softcapping": 50.0}),
    "attends to later tokens": ("gemma3_text", {"use_bidirectional_attention": True}),
    "rope_type is .dynamic., and it knows default, linear, yarn, llama3": (
        "llama",
        _rope(rope_type="dynamic", factor=2.0),
    ),
    "rope_type is .llama3.": (
        "qwen3",
        _rope(
            rope_type="llama3",
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=32,
        ),
    ),
    "rope_parameters has truncate False": (
        "llama",
        _rope(**_YARN, truncate=False),
    ),
    "rope_parameters has beta_slow 2.0, and there it is 1": (
        "qwen3",
        _rope(**_YARN, beta_fast=32.0, beta_slow=2.0),
    ),
    "rope_parameters has beta_fast 64, and there it is 32": ("llama", _rope(**_YARN, beta_fast=64)),
    "none of its layer_types is sliding_attention": (
        "gemma2",
        {"layer_types": ["full_attention"] * 2},
    ),
    "sliding_window is None": ("gemma3_text", {"sliding_window": None}),
    "partial_rotary_factor is 0.5": ("llama", _rope(partial_rotary_factor=0.5)),
    "'model.layers.0.self_attn.o_proj.bias' has no place in a qwen3": (
        "qwen3",
        {"attention_bias": True},
    ),
    "'lm_head.weight' has no place in a gemma2": ("gemma2", {"tie_word_embeddings": False}),
}


@pytest.mark.parametrize("why", REFUSED)
def test_other_models_are_refused_before_any_work(tmp_path: Path, why: str) -> None:
    architecture, options = REFUSED[why]
    with pytest.raises(InputError, match=f"{why}.*--format"):
        _checked(_tiny(architecture, **options), tmp_path / "model")


@pytest.mark.parametrize("architecture", ["gpt_neox", "opt", "gemma"])
def test_an_unknown_architecture_is_answered_with_the_known_ones(
    tmp_path: Path, architecture: str
) -> None:
    with pytest.raises(InputError, match=f"{', '.join(ARCHITECTURES)}, .*is .{architecture}"):
        _checked(tiny_model(architecture, layers=2), tmp_path / "model")


def test_what_is_written_gives_no_notes(tmp_path: Path) -> None:
    for architecture in CONFIGS:
        assert _checked(_tiny(architecture), tmp_path / architecture) == []


def test_a_window_that_llama_cpp_ignores_is_noted(tmp_path: Path) -> None:
    (note,) = _checked(_tiny("mistral", sliding_window=16), tmp_path / "mistral")
    assert "the last 16 tokens" in note and "--ctx-size 16" in note
    full = {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 2}
    assert _checked(_tiny("qwen2", **full), tmp_path / "full") == []
    (note,) = _checked(_tiny("qwen2", **{**full, "max_window_layers": 1}), tmp_path / "qwen2")
    assert "the last 16 tokens" in note


def test_factors_that_llama_cpp_chooses_by_its_context_are_noted(tmp_path: Path) -> None:
    factors = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
    longrope = _rope(rope_type="longrope", **factors)
    sizes = {"original_max_position_embeddings": 32, "max_position_embeddings": 64}
    (note,) = _checked(_tiny("phi3", **longrope, **sizes), tmp_path / "long")
    assert "context is longer than 32 tokens" in note and "--ctx-size 32" in note
    sizes["max_position_embeddings"] = 32
    assert _checked(_tiny("phi3", **longrope, **sizes), tmp_path / "short") == []


def test_a_type_that_older_builds_refuse_is_noted(tmp_path: Path) -> None:
    save(tmp_path / "model")
    source, container = open_source(tmp_path / "model"), gguf_format("q2_0").container
    for storage in (LAYERS, BlockStorage(block_type="q2_0")):
        (note,) = container.check(source, storage)
        assert note.startswith("llama.cpp reads Q2_0 since its build ")


def test_a_tokenizer_without_a_counterpart_is_refused(tmp_path: Path) -> None:
    save_tiny(tmp_path / "model")
    with pytest.raises(InputError, match="no name for the pre-tokenizer"):
        gguf_format().container.check(open_source(tmp_path / "model"), LAYERS)


def test_a_model_in_memory_has_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="give that, or use another --format"):
        gguf_format().container.check(open_source(_tiny("llama")), LAYERS)


def test_numbers_beyond_float16_are_refused(tmp_path: Path) -> None:
    model = save(tmp_path / "model", "llama")
    model.model.layers[0].mlp.up_proj.weight.data[0, 0] = 1e6
    model.save_pretrained(tmp_path / "model")
    format = FORMATS["gguf"]
    with pytest.raises(ArithmeticError, match="up_proj.weight' has NaN or Inf in torch.float16"):
        format.write(tmp_path / "out", open_source(tmp_path / "model"), {})
    assert not (tmp_path / "out").exists()
    assert torch.isfinite(model.lm_head.weight).all()
