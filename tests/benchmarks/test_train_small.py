"""`benchmarks/train_small.py` at a tiny scale: every family, its folder, and its mathematics."""

import json
import math
import runpy
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import tiny_text
from transformers import AutoModelForCausalLM, AutoTokenizer

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
FAMILIES = ("llama", "moe-qwen", "moe-deepseek", "mamba")
EXPERTS = {"moe-qwen": 4, "moe-deepseek": 3}
"""Layers with experts."""


@pytest.fixture
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    yield
    torch.use_deterministic_algorithms(False)


def story(folder):
    """A file of 1800 words, which are as many tokens."""
    folder.mkdir(exist_ok=True)
    file = folder / "story.txt"
    file.write_text(tiny_text(200).replace(" of ", " of\n"), encoding="utf-8")
    return file


def trained(folder, family, monkeypatch):
    """The folder of a model after two steps."""
    script, output = BENCHMARKS / "train_small.py", folder / family
    short = ["--steps", "2", "--batch", "2", "--length", "32"]
    texts = ["--text", str(story(folder)), "--output", str(output)]
    monkeypatch.setattr(sys, "argv", [str(script), family, *texts, *short])
    runpy.run_path(str(script), run_name="__main__")
    return output


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_trained_and_opens(tmp_path, monkeypatch, benchmarks, family):
    folder = trained(tmp_path, family, monkeypatch)
    weights = load_file(folder / "model.safetensors")
    assert {x.dtype for x in weights.values()} == {torch.bfloat16}
    model = AutoModelForCausalLM.from_pretrained(folder)
    text = (folder / "held-out-story.txt").read_text(encoding="utf-8")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokens = tokenizer(text).input_ids
    assert tokenizer.decode(tokens) == text
    assert 0 < max(tokens) < model.config.vocab_size

    record = json.loads((folder / "training.json").read_text())
    (row,) = record["held_out"]
    windows = torch.tensor(tokens[: len(tokens) // 32 * 32]).reshape(-1, 32)
    assert row["windows"] == len(windows)
    with torch.no_grad():
        loss = model(windows, labels=windows).loss.item()
    assert row["loss"] == pytest.approx(loss, rel=0.01)  # bfloat16, in other shapes
    assert len(row["expert_shares"]) == EXPERTS.get(family, 0)
    assert all(sum(layer) == pytest.approx(1) for layer in row["expert_shares"])


@pytest.mark.slow
def test_one_seed_gives_one_model(tmp_path, monkeypatch, benchmarks):
    first, second = (
        load_file(trained(tmp_path / name, "moe-deepseek", monkeypatch) / "model.safetensors")
        for name in ("first", "second")
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_scan_agrees_with_transformers(benchmarks):
    """Values and all gradients, against its loop over tokens."""
    from training.scan import selective_scan
    from transformers.models.mamba.modeling_mamba import mamba_selective_scan

    torch.manual_seed(0)
    shapes = [(2, 8, 12), (2, 8, 12), (8, 4), (2, 4, 12), (2, 4, 12)]
    tensors = [torch.randn(shape) for shape in shapes]
    tensors[2] = -tensors[2].abs()
    named = {"D": torch.randn(8), "z": torch.randn(2, 8, 12), "delta_bias": torch.randn(8)}
    leaves = [x.requires_grad_() for x in (*tensors, *named.values())]
    weight = torch.randn(2, 8, 12)
    results = []
    for scan in (selective_scan, mamba_selective_scan):
        output = scan(*tensors, **named, delta_softplus=True)
        results.append((output, *torch.autograd.grad((output * weight).sum(), leaves)))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_balance_is_one_for_even_experts(benchmarks):
    from training.routing import balancing_loss, shares

    even = 5 * torch.eye(4).repeat(3, 1)  # every token prefers one expert, all in turn
    assert shares(even, 1).tolist() == [0.25] * 4
    assert balancing_loss([even], 1).item() == pytest.approx(1)
    crowded = even[:1].expand(8, 4)
    preferred = math.exp(5) / (math.exp(5) + 3)
    assert balancing_loss([even, crowded], 1).item() == pytest.approx((1 + 4 * preferred) / 2)


def test_unigram_loss_is_the_entropy_of_counts(benchmarks):
    from training.texts import WORDS, Tokens, unigram_loss

    held_out = torch.tensor([0, 1, 2])
    text = Tokens("story", torch.tensor([1, 1, 1, 2]), held_out)
    expected = -(math.log(4 / (WORDS + 4)) + math.log(2 / (WORDS + 4))) / 2
    assert unigram_loss(text, held_out[None]) == pytest.approx(expected)


def test_a_text_too_short_is_named(benchmarks, tmp_path):
    from training.texts import load_text, tokens_of, trained_tokenizer

    text = load_text(str(story(tmp_path)))
    with pytest.raises(ValueError, match="story has .* --length 4096"):
        tokens_of(text, trained_tokenizer([text]), 4096)
