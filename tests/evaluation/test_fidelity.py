"""Every statistic against its definition in numpy; errors against repeated draws."""

import json
import math
from dataclasses import asdict

import numpy as np
import pytest
import torch
from evaluation.test_perplexity import CONFIGS, VOCABULARY, perplexity, random_windows
from hypothesis import given
from hypothesis import strategies as st
from oracles import divergence as oracle
from transformers import AutoModelForCausalLM

from q2n.data.windows import TokenWindows
from q2n.errors import InputError, NumericalError
from q2n.evaluation import per_token, scoring
from q2n.evaluation.body import Whole
from q2n.evaluation.fidelity import EDGES, fidelity_of, paired_difference
from q2n.evaluation.per_token import PerToken, compared
from q2n.evaluation.results import Fidelity
from q2n.evaluation.scoring import Reference, score_against

# float32 logits on our side, float64 on the other: values of order 5 with 7 digits.
CLOSE = {"rtol": 2e-5, "atol": 2e-6}


def tiny(name="llama", seed=0):
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(CONFIGS[name]).eval()


def random_logits(tokens=40, words=300, size=4.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    reference = size * torch.randn(tokens, words, generator=generator)
    logits = reference + torch.randn(tokens, words, generator=generator)
    return logits, reference, torch.randint(words, (tokens,), generator=generator)


def random_scores(windows=6, each=50, seed=0):
    logits, reference, targets = random_logits(windows * each, seed=seed)
    return compared(logits, reference, targets)


def windows_of(count, each, stride=None):
    tokens = torch.zeros(count, each + 1, dtype=torch.long)
    return TokenWindows(tokens=tokens, label="zeros", stride=stride)


@given(size=st.floats(0.01, 30), shift=st.floats(-100, 100), seed=st.integers(0, 9))
def test_tokens_agree_with_the_definition(size, shift, seed):
    logits, reference, targets = random_logits(size=size, seed=seed)
    found = asdict(compared(logits + shift, reference, targets))
    # What adding the shift rounds away.
    close = {"rtol": 2e-5, "atol": 2e-6 + 4 * abs(shift) * torch.finfo(torch.float32).eps}
    expected = oracle.per_token((logits + shift).numpy(), reference.numpy(), targets.numpy())
    for name, values in expected.items():
        np.testing.assert_allclose(found[name].numpy(), values, **close, err_msg=name)


def test_equal_logits_diverge_by_nothing():
    logits, _, targets = random_logits()
    scores = compared(logits, logits.clone(), targets)
    assert scores.divergence.eq(0).all() and scores.same_top.all()
    assert torch.equal(scores.loss, scores.reference_loss)


def test_statistics_agree_with_the_definition():
    scores, windows = random_scores(), windows_of(6, 50)
    found = asdict(fidelity_of(scores, windows, "it"))
    columns = {name: value.numpy() for name, value in asdict(scores).items()}
    slices = [slice(50 * n, 50 * n + 50) for n in range(6)]
    for name, value in oracle.statistics(columns, slices).items():
        assert found[name] == pytest.approx(value, rel=1e-12), name
    means = [columns["divergence"][part].mean() for part in slices]
    assert found["by_window"] == pytest.approx(means, rel=1e-12)


def test_overlapping_windows_count_what_is_new():
    windows = windows_of(4, 50, stride=10)
    scores = random_scores(1, 80)
    found = fidelity_of(scores, windows, "it")
    parts = scores.divergence.split(10)  # the first window has new tokens for five
    assert found.divergence == pytest.approx(float(scores.divergence.mean()))
    assert found.by_window == pytest.approx([float(part.mean()) for part in parts])


def test_a_difference_is_that_of_the_divergences_where_windows_overlap():
    """A window's part that no stride divides has about as many tokens as the others."""
    windows = windows_of(4, 127, stride=8)
    one, other = (
        fidelity_of(random_scores(1, 127 + 3 * 8, seed=seed), windows, "it") for seed in (1, 2)
    )
    assert len(one.by_window) == 16 + 3
    difference, error = paired_difference(one, other)
    assert difference == pytest.approx(one.divergence - other.divergence, rel=0, abs=0.1 * error)


def test_buckets_share_all_tokens():
    scores = random_scores(seed=3)
    found = fidelity_of(scores, windows_of(6, 50), "it")
    top = scores.reference_top.numpy()
    assert sum(bucket.share for bucket in found.buckets) == pytest.approx(1)
    for bucket in found.buckets:
        inside = (top >= bucket.low) & ((top < bucket.high) | (bucket.high == EDGES[-1]))
        assert bucket.share == pytest.approx(inside.mean())
        if inside.any():
            values = scores.divergence.numpy()[inside]
            assert bucket.divergence == pytest.approx(values.mean())
            assert bucket.median == pytest.approx(np.median(values))
            assert bucket.same_top == pytest.approx(scores.same_top.numpy()[inside].mean())


@pytest.mark.parametrize("name", ["divergence", "same_top", "probability_change", "log_ratio"])
def test_standard_errors_are_those_of_repeated_draws(name):
    """Windows are drawn from windows of different difficulty; tokens of one are alike."""
    generator = torch.Generator().manual_seed(5)

    def draw():
        hard = torch.rand(12, 1, generator=generator).expand(12, 40).reshape(-1)
        noise = torch.rand(480, generator=generator)
        return PerToken(
            loss=(3 + hard + noise).double(),
            reference_loss=(3 + noise).double(),
            divergence=(hard * noise).double(),
            same_top=noise > hard,
            reference_top=noise.double(),
        )

    found = [fidelity_of(draw(), windows_of(12, 40), "it") for _ in range(400)]
    values = np.array([getattr(x, name) for x in found])
    errors = np.array([getattr(x, f"{name}_error") for x in found])
    # The spread of 400 draws is known to 1/sqrt(800) = 3.5 %.
    assert np.sqrt((errors**2).mean()) == pytest.approx(values.std(ddof=1), rel=0.15)


def test_a_single_window_has_no_errors():
    found = fidelity_of(random_scores(1), windows_of(1, 50), "it")
    assert found.divergence_error is found.log_ratio_error is found.same_top_error is None
    assert found.probability_change_error is None


def test_fidelity_is_json_and_back():
    found = fidelity_of(random_scores(), windows_of(6, 50), "it")
    assert Fidelity.from_json(json.loads(json.dumps(asdict(found), allow_nan=False))) == found


def test_pairs_are_compared_window_by_window():
    windows = windows_of(6, 50)
    a, b = (fidelity_of(random_scores(seed=seed), windows, "it") for seed in (1, 2))
    difference, error = paired_difference(a, b)
    pairs = np.array(a.by_window) - np.array(b.by_window)
    assert difference == pytest.approx(a.divergence - b.divergence)
    assert error == pytest.approx(pairs.std(ddof=1) / math.sqrt(6))
    other = fidelity_of(random_scores(3), windows_of(3, 50), "it")
    with pytest.raises(InputError, match="different windows"):
        paired_difference(a, other)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("stride", [None, 7])
def test_models_are_compared_token_by_token(name, stride, monkeypatch):
    """Against whole logits of both models, with chunks that do not divide the windows."""
    monkeypatch.setattr(scoring, "CHUNK", 5 * VOCABULARY)
    monkeypatch.setattr(per_token, "SLICE", 2 * VOCABULARY)
    model, other, windows = tiny(name), tiny(name, seed=1), random_windows(stride=stride)
    with torch.inference_mode():
        reference = Reference(Whole(other, windows), batch_size=2)
        scores = score_against(reference, Whole(model, windows), batch_size=3)
        rows = [
            (model(row[None]).logits[0, :-1], other(row[None]).logits[0, :-1], row[1:])
            for row in windows.tokens
        ]
    counted = [tuple(x[-n:] for x in row) for row, n in zip(rows, windows.scored, strict=True)]
    expected = oracle.per_token(*(torch.cat(parts).numpy() for parts in zip(*counted, strict=True)))
    for name_of, values in expected.items():
        np.testing.assert_allclose(asdict(scores)[name_of].numpy(), values, **CLOSE)
    alone = perplexity(model, windows)
    assert float(scores.loss.mean()) == pytest.approx(alone.loss, rel=1e-6)


def test_vocabularies_of_two_sizes_are_refused_with_both():
    windows = random_windows()
    other = AutoModelForCausalLM.from_config(
        type(CONFIGS["llama"])(**{**CONFIGS["llama"].to_dict(), "vocab_size": 107})
    )
    with torch.inference_mode():
        reference = Reference(Whole(other, windows), 1)
        with pytest.raises(InputError, match="vocabulary of 101 and the reference one of 107"):
            score_against(reference, Whole(tiny(), windows), 1)


@pytest.mark.parametrize("broken", ["model", "reference"])
def test_logits_that_are_not_numbers_name_the_window(broken):
    windows = random_windows()
    model, other = tiny(), tiny(seed=1)
    damaged = model if broken == "model" else other
    word = int(windows.tokens[3, 5])
    windows.tokens[windows.tokens == word] = 0
    windows.tokens[3, 5] = word
    with torch.inference_mode():
        damaged.model.embed_tokens.weight[word] = math.nan
        reference = Reference(Whole(other, windows), 2)
        which = "loss of the reference" if broken == "reference" else "the loss"
        with pytest.raises(NumericalError, match=f"{which} of window 3 of 'random'"):
            score_against(reference, Whole(model, windows), 2)
