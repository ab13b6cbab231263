"""Perplexity against transformers' own loss and the plain definition."""

import json
import math
from dataclasses import asdict

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPTNeoXConfig,
    LlamaConfig,
    OPTConfig,
)

from q2n.data.windows import TokenWindows
from q2n.errors import InputError, NumericalError
from q2n.evaluation import per_token, scoring
from q2n.evaluation.opening import whole
from q2n.evaluation.perplexity import perplexity as perplexity_of
from q2n.logging import Reporter

VOCABULARY = 101
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}
CONFIGS = {
    "llama": LlamaConfig(**SMALL, intermediate_size=48, initializer_range=0.2),
    "opt": OPTConfig(**SMALL, ffn_dim=48, word_embed_proj_dim=16, init_std=0.2),
    "gpt-neox": GPTNeoXConfig(**SMALL, intermediate_size=48, initializer_range=0.2),
    # Logits capped after the head: the head on the hidden states is not the model.
    "gemma2": Gemma2Config(
        **SMALL,
        intermediate_size=48,
        head_dim=16,
        num_key_value_heads=1,
        initializer_range=0.5,
        final_logit_softcapping=1.0,
    ),
}
# Sums of fewer than 200 losses of order 5 in another order, float32 on both sides, with
# logits from matrix products of other shapes: a few hundred roundings at the very most.
TOLERANCE = 200 * torch.finfo(torch.float32).eps


def tiny(name="llama"):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIGS[name]).eval()


def perplexity(model, windows, **how):
    with Reporter().bar("", 1) as bar, whole(lambda: model)(windows, bar) as body:
        return perplexity_of(body, **how)


def random_windows(count=5, length=24, stride=None):
    generator = torch.Generator().manual_seed(1)
    if stride is None:
        tokens = torch.randint(VOCABULARY, (count, length), generator=generator)
    else:
        text = torch.randint(VOCABULARY, (length + (count - 1) * stride,), generator=generator)
        tokens = text.unfold(0, length, stride)
    return TokenWindows(tokens=tokens, label="random", stride=stride)


def transformers_losses(model, tokens):
    with torch.no_grad():
        return [float(model(row[None], labels=row[None]).loss) for row in tokens]


@pytest.mark.parametrize("name", CONFIGS)
def test_equals_transformers_loss(name):
    model, windows = tiny(name), random_windows()
    losses = torch.tensor(transformers_losses(model, windows.tokens), dtype=torch.float64)
    result = perplexity(model, windows)
    assert result.loss == pytest.approx(float(losses.mean()), rel=TOLERANCE)
    assert result.perplexity == pytest.approx(math.exp(losses.mean()), rel=10 * TOLERANCE)
    error = math.exp(losses.mean()) * float(losses.std()) / math.sqrt(5)
    # A difference of losses: their rounding is larger relative to it.
    assert result.standard_error == pytest.approx(error, rel=1000 * TOLERANCE)


def test_batch_size_and_chunks_do_not_matter(monkeypatch):
    model, windows = tiny(), random_windows(count=7)
    expected = perplexity(model, windows, batch_size=1).loss
    for batch_size in (2, 3, 7, 50):
        assert perplexity(model, windows, batch_size=batch_size).loss == pytest.approx(
            expected, rel=TOLERANCE
        )
    monkeypatch.setattr(scoring, "CHUNK", 5 * VOCABULARY)  # 23 predictions: 4 full chunks, 1 part
    monkeypatch.setattr(per_token, "SLICE", 2 * VOCABULARY)  # of 5: 2 full slices, 1 part
    assert perplexity(model, windows).loss == pytest.approx(expected, rel=TOLERANCE)


@pytest.mark.parametrize("stride", [1, 7, 23, 24])
def test_stride_predicts_each_token_once_with_overlap_context(stride):
    model, length, count = tiny(), 24, 4
    windows = random_windows(count, length, stride)
    text = torch.cat([windows.tokens[0], *(row[-stride:] for row in windows.tokens[1:])])
    total, predicted = 0.0, 0
    for target in range(1, len(text)):
        # The first window that reaches the token.
        window = max(0, -(-(target - length + 1) // stride))
        if window * stride == target:  # only with stride = length: no context, not predicted
            continue
        with torch.no_grad():
            logits = model(text[None, window * stride : target]).logits[0, -1]
        total -= float(logits.log_softmax(-1)[text[target]])
        predicted += 1
    result = perplexity(model, windows)
    assert result.tokens == predicted
    assert result.loss == pytest.approx(total / predicted, rel=TOLERANCE)


def test_llama_cpp_scores_the_second_half():
    """Its loop: of n tokens those at n/2 .. n - 2 predict the next one."""
    model, tokens = tiny(), random_windows().tokens
    windows = TokenWindows(tokens=tokens, label="random", protocol="llama.cpp")
    with torch.no_grad():
        logs = model(tokens).logits.double().log_softmax(-1)
    losses = [
        -float(logs[chunk, i, tokens[chunk, i + 1]]) for chunk in range(5) for i in range(12, 23)
    ]
    result = perplexity(model, windows)
    assert result.tokens == len(losses) == 5 * 11
    assert result.loss == pytest.approx(sum(losses) / len(losses), rel=TOLERANCE)
    assert result.protocol == "llama.cpp"


def test_record_is_json_and_complete():
    windows = random_windows(count=3)
    record = json.loads(json.dumps(asdict(perplexity(tiny(), windows)), allow_nan=False))
    assert record["windows"] == 3
    assert record["tokens"] == 3 * 23
    assert record["length"] == 24
    assert record["stride"] is None
    assert record["protocol"] == "q2n"
    assert record["label"] == "random"
    assert record["sha256"] == windows.sha256
    assert record["seconds"] > 0


def test_one_window_has_no_standard_error():
    assert perplexity(tiny(), random_windows(count=1)).standard_error is None


def test_bfloat16_model_is_near_its_float32_twin():
    model, windows = tiny(), random_windows()
    expected = perplexity(model, windows).loss
    # bfloat16 keeps 8 bits; losses of order 5 after two layers: a heuristic 2 percent.
    assert perplexity(model.bfloat16(), windows).loss == pytest.approx(expected, rel=0.02)


def test_progress_and_training_mode():
    seen = []
    model = tiny().train()
    perplexity(model, random_windows(count=5), batch_size=2, progress=seen.append)
    assert seen == [1, 1, 1, 1, 1]
    assert model.training


def test_nan_is_a_named_error():
    model = tiny()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = math.nan
    with pytest.raises(NumericalError, match="window 0 of 'random' is not finite"):
        perplexity(model, random_windows())


def test_overflowing_perplexity_is_a_named_error():
    model = tiny()
    with torch.no_grad():
        model.lm_head.weight.mul_(1e4)
    with pytest.raises(NumericalError, match="too high|broken"):
        perplexity(model, random_windows())


def test_windows_that_do_not_fit_are_refused():
    model = tiny()
    with pytest.raises(InputError, match="65 tokens.*context of 64"):
        perplexity(model, random_windows(length=65))
    foreign = TokenWindows(tokens=torch.full((1, 8), VOCABULARY), label="foreign")
    with pytest.raises(InputError, match="vocabulary of 101"):
        perplexity(model, foreign)
    with pytest.raises(InputError, match="batch size 0"):
        perplexity(model, random_windows(), batch_size=0)
