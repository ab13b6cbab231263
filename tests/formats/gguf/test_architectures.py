"""Every architecture, written and run by the real llama.cpp beside transformers."""

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from formats.gguf.checkpoints import CONFIGS, gguf_format, in_blocks, rotary, save
from llama_cpp import greedy, logits, needs_llama_cpp
from transformers import PreTrainedModel

from q2n.block_types import BLOCK_TYPES
from q2n.formats.gguf.source import GGUFSource
from q2n.formats.load import load_model
from q2n.models.model_source import assemble
from q2n.models.source import open_source

TOKENS = [1, 5, 17, 99, 3, 200, 301, 44, 12, 13, 14, 15, 16, 100, 101, 102, 103, 104, 105, 106]
CLOSE = 1e-4  # of the spread of the logits: float32 sums in another order
GELU = 1e-2  # llama.cpp looks its GELU up in a table of float16

_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8}
_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
_LONG = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.1, 1.3, 1.5, 2.0, 2.5, 3.0, 4.0],
    "long_factor": [1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 9.0],
}


def _context(trained: int, longest: int) -> dict[str, int]:
    return {"original_max_position_embeddings": trained, "max_position_embeddings": longest}


_GLOBAL = {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0}
_LOCAL = {"rope_type": "default", "rope_theta": 1e4}
VARIANTS = {
    "llama tied": ("llama", {"tie_word_embeddings": True}),
    "llama biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama head_dim": ("llama", {"head_dim": 32}),
    "llama linear": ("llama", rotary(rope_type="linear", factor=4.0)),
    "llama llama3": ("llama", rotary(**_LLAMA3)),
    "llama yarn": ("llama", rotary(**_YARN)),
    "qwen2 yarn": ("qwen2", rotary(**_YARN, beta_fast=32.0, beta_slow=1.0)),
    "qwen3 yarn": ("qwen3", rotary(**_YARN)),
    "qwen3 tied": ("qwen3", {"tie_word_embeddings": True}),
    "gemma3 untied": ("gemma3_text", {"tie_word_embeddings": False}),
    "gemma3 capped": ("gemma3_text", {"final_logit_softcapping": 5.0}),
    "gemma3 linear": (
        "gemma3_text",
        {"rope_parameters": {"full_attention": _GLOBAL, "sliding_attention": _LOCAL}},
    ),
    "gemma3 windows": (
        "gemma3_text",
        {"layers": 3, "layer_types": ["full_attention", "sliding_attention", "full_attention"]},
    ),
    "gemma2 windows": ("gemma2", {"layers": 3, "layer_types": ["sliding_attention"] * 3}),
    "phi3 partial": ("phi3", rotary(rope_type="default", partial_rotary_factor=0.5)),
    "phi3 longrope, short": ("phi3", {**rotary(**_LONG), **_context(512, 1024)}),
    "phi3 longrope, long": ("phi3", {**rotary(**_LONG), **_context(16, 1024)}),
}


def written(place: Path, outside: str = "f32", layers: dict | None = None) -> Path:
    """The GGUF file of the checkpoint in `place`."""
    gguf_format(outside).write(place / "out", open_source(place / "model"), layers or {})
    return place / "out" / "model.gguf"


def true_logits(model: PreTrainedModel) -> np.ndarray:
    with torch.no_grad():
        return model.float()(torch.tensor([TOKENS])).logits[0].numpy()


def assert_close(found: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    assert np.abs(found - expected).max() < tolerance * expected.std()


def tolerance_of(architecture: str) -> float:
    return GELU if "gemma" in architecture else CLOSE


@needs_llama_cpp
@pytest.mark.parametrize("architecture", CONFIGS)
def test_llama_cpp_computes_the_model(tmp_path: Path, architecture: str) -> None:
    model = save(tmp_path / "model", architecture)
    assert_close(logits(written(tmp_path), TOKENS), true_logits(model), tolerance_of(architecture))


@needs_llama_cpp
@pytest.mark.parametrize("variant", VARIANTS)
def test_llama_cpp_computes_what_config_json_says(tmp_path: Path, variant: str) -> None:
    architecture, options = VARIANTS[variant]
    model = save(tmp_path / "model", architecture, **options)
    found = logits(written(tmp_path), TOKENS)
    assert_close(found, true_logits(model), tolerance_of(architecture))


@needs_llama_cpp
def test_greedy_text_is_the_same(tmp_path: Path) -> None:
    model = save(tmp_path / "model", "llama")
    prompt = torch.tensor([TOKENS[:5]])
    expected = model.generate(prompt, max_new_tokens=8, do_sample=False, eos_token_id=None)
    assert greedy(written(tmp_path), TOKENS[:5], 8) == expected[0].tolist()


@needs_llama_cpp
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_as_it_is(tmp_path: Path, dtype: torch.dtype) -> None:
    model = save(tmp_path / "model", "qwen3", dtype=dtype)
    file = written(tmp_path, str(dtype)[6:].replace("bfloat", "bf").replace("float", "f"))
    assert_close(logits(file, TOKENS), true_logits(model), 0.05)  # activations are rounded too
    back = assemble(GGUFSource(file.parent, "auto"))
    for name, parameter in model.to(dtype).named_parameters():
        assert torch.equal(back.get_parameter(name), parameter), name


@needs_llama_cpp
@pytest.mark.slow
@pytest.mark.parametrize("kind", BLOCK_TYPES)
def test_blocks_are_what_llama_cpp_computes_with(tmp_path: Path, kind: str) -> None:
    """In linears, embeddings and head."""
    model = save(tmp_path / "model", hidden_size=256, intermediate_size=256, head_dim=64, layers=1)
    file = written(tmp_path, kind, in_blocks(model, kind))
    dense = load_model(file.parent)
    off = logits(file, TOKENS) - true_logits(dense)
    assert off.std() < 0.05  # it rounds activations to 8 bits; logits are spread by 1


@pytest.mark.parametrize("architecture", CONFIGS)
def test_our_reader_gives_the_model_back(tmp_path: Path, architecture: str) -> None:
    model = save(tmp_path / "model", architecture)
    back = load_model(written(tmp_path).parent)
    offset = 2**-24 if "gemma" in architecture else 0  # 1 + w is rounded
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(back.get_parameter(name), parameter, rtol=0, atol=2 * offset)


@pytest.mark.parametrize("architecture", CONFIGS)
def test_gguf_py_finds_every_tensor_in_its_shape(tmp_path: Path, architecture: str) -> None:
    model = save(tmp_path / "model", architecture)
    reader = gguf.GGUFReader(written(tmp_path))
    found = {x.name: tuple(x.shape.tolist()[::-1]) for x in reader.tensors}
    assert len(found) == len(list(model.named_parameters()))
    assert found["token_embd.weight"] == tuple(model.get_input_embeddings().weight.shape)
    assert {x.tensor_type.name for x in reader.tensors} == {"F32"}
    name = reader.fields["general.architecture"].contents()
    assert reader.fields[f"{name}.block_count"].contents() == model.config.num_hidden_layers
