"""16-bit log probabilities against llama.cpp's loop word by word, and their error."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import llama_cpp as oracle

from q2n.evaluation.llama_cpp.records import decode, encode, record_type


def random_logits(tokens, words, spread, seed=0):
    return spread * torch.randn(tokens, words, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("words", [1, 2, 5, 64, 101])
@pytest.mark.parametrize("spread", [0.0, 1e-3, 1.0, 12.0])
def test_bytes_are_those_of_the_loop(words, spread):
    logits = random_logits(7, words, spread)
    expected = [oracle.record(row) for row in logits.numpy()]
    # 1/scale and the sum of exponentials may be one rounding apart: a code in a thousand.
    kind = record_type(words)
    wanted = np.concatenate([np.frombuffer(row, kind) for row in expected])
    found = encode(logits)
    assert np.allclose(found["min_log_prob"], wanted["min_log_prob"], rtol=3e-7)
    for field in ("scale", "codes", "padding"):
        assert np.array_equal(found[field], wanted[field]), field


def test_half_a_code_goes_to_the_even_one():
    scale = 2.0**-13
    codes = torch.tensor([[0.0, 0.5, 1.5, 2.5, 65535.0]])
    assert encode(codes * scale)["codes"].tolist() == [[0, 0, 2, 2, 65535]]


@settings(max_examples=60, deadline=None)
@given(
    words=st.integers(1, 300),
    spread=st.floats(0, 40),
    offset=st.floats(-100, 100),
    seed=st.integers(0, 2**31),
)
def test_round_trip_is_within_half_a_scale(words, spread, offset, seed):
    logits = random_logits(4, words, spread, seed) + offset
    records = encode(logits)
    exact = logits.double().log_softmax(1)
    floor = exact.amax(1, keepdim=True) - 16
    # Beside half a code: logits, their differences and log p are rounded to float32.
    rounding = 4 * torch.finfo(torch.float32).eps * (logits.abs().amax() + 16 + np.log(words))
    error = (decode(records) - exact.maximum(floor)).abs().amax(1)
    assert bool((error <= 0.5 * torch.tensor(records["scale"]) + rounding).all())


def test_words_of_probability_zero_get_the_floor():
    logits = torch.tensor([[1.0, -torch.inf, 1.0, -40.0]])
    log_p = decode(encode(logits))[0]
    assert log_p[1] == log_p[3] == pytest.approx(-16 - np.log(2), abs=1e-5)
    assert log_p[0] == log_p[2] == pytest.approx(-np.log(2), abs=1e-5)
