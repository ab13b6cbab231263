"""Losses on predictions against those of full logits."""

import pytest
import torch
from evaluation.test_body import PARTS, model_of
from torch import nn
from torch.nn.functional import cross_entropy as full_cross_entropy
from torch.nn.functional import kl_div

from q2n.models.head import take_apart
from q2n.refit.predictions import _CHUNK, cross_entropy, divergence

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("count", [1, 7, _CHUNK, 2 * _CHUNK + 100])
def test_divergence_and_gradient_match_full_logits(count, bias):
    generator = torch.Generator().manual_seed(count)
    head = nn.Linear(24, 50, bias=bias).requires_grad_(False)
    teacher = 3 * torch.randn(count, 24, generator=generator)
    states = (teacher + torch.randn(count, 24, generator=generator)).requires_grad_()
    value = divergence(states, teacher, head)
    (3 * value).backward()
    full = states.detach().double().requires_grad_()
    head = head.double()
    log_s, log_p = head(full).log_softmax(1), head(teacher.double()).log_softmax(1)
    expected = kl_div(log_s, log_p, log_target=True, reduction="sum") / count
    (3 * expected).backward()
    assert float(value.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    # float32 logits; a gradient is a sum over 50 words
    torch.testing.assert_close(states.grad.double(), full.grad, rtol=1e-4, atol=1e-5 / count)


def test_equal_predictions_have_no_divergence():
    head = nn.Linear(24, 50).requires_grad_(False)
    states = torch.randn(300, 24).requires_grad_()
    value = divergence(states, states.detach(), head)
    value.backward()
    assert float(value.detach()) == 0 and (states.grad == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_divergence_in_bfloat16_points_the_same_way(dtype):
    generator = torch.Generator().manual_seed(1)
    head = nn.Linear(24, 50).requires_grad_(False)
    teacher = 3 * torch.randn(40, 24, generator=generator)
    states = teacher + torch.randn(40, 24, generator=generator)
    actual = states.to(dtype, copy=True).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        divergence(actual, teacher.to(dtype), head.to(dtype)).backward()
    assert actual.grad.dtype == dtype
    full = states.double().requires_grad_()
    head = head.double()
    log_s, log_p = head(full).log_softmax(1), head(teacher.double()).log_softmax(1)
    kl_div(log_s, log_p, log_target=True, reduction="batchmean").backward()
    cosine = torch.cosine_similarity(actual.grad.double().flatten(), full.grad.flatten(), 0)
    assert cosine > 0.99


@pytest.mark.parametrize("count", [1, _CHUNK, 2 * _CHUNK + 100])
def test_cross_entropy_and_gradient_match_full_logits(count):
    generator = torch.Generator().manual_seed(count)
    head = nn.Linear(24, 50).requires_grad_(False)
    states = (3 * torch.randn(count, 24, generator=generator)).requires_grad_()
    following = torch.randint(50, (count,), generator=generator)
    value = cross_entropy(states, following, head)
    (3 * value).backward()
    full = states.detach().double().requires_grad_()
    expected = full_cross_entropy(head.double()(full), following)
    (3 * expected).backward()
    assert float(value.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    torch.testing.assert_close(states.grad.double(), full.grad, rtol=1e-4, atol=1e-5 / count)


@pytest.mark.parametrize("name", ["gemma2", "granite"])
def test_what_a_model_does_to_its_logits_counts(name):
    """A cap, or a scaling: against the model's own logits."""
    model = model_of(PARTS[name]).requires_grad_(False)
    tokens = torch.arange(3, 27)[None]
    head, body = take_apart(model, lambda module: module(tokens, use_cache=False))
    assert body is model.base_model
    teacher = body(tokens).last_hidden_state[0]
    move = torch.randn(teacher.shape, generator=torch.Generator().manual_seed(0))
    states = (teacher + move).requires_grad_()
    value = divergence(states, teacher, head)
    value.backward()
    full = (teacher + move).requires_grad_()
    log_s, log_p = (head(x).log_softmax(1) for x in (full, teacher))
    assert torch.equal(head(teacher), model(tokens).logits[0])
    expected = kl_div(log_s, log_p, log_target=True, reduction="batchmean")
    expected.backward()
    assert float(value.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    torch.testing.assert_close(states.grad, full.grad, rtol=1e-4, atol=1e-6)
    plain = divergence(states.detach(), teacher, model.get_output_embeddings())
    assert float(plain) > 1.1 * float(value.detach())  # without what comes after the output layer
