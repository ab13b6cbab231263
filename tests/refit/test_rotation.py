"""Rotations that are learned on the loss of a rounded model."""

import pytest
import torch
from rotatable import model_of

from q2n.errors import NumericalError
from q2n.grids.per_token import TokenGrid
from q2n.models.rotated_source import changed_source
from q2n.models.source import assemble, open_source
from q2n.models.targets import EVERY_LAYER, LayerFilter
from q2n.models.turned_source import TurnedSource
from q2n.refit.rotation import RotationLearning, _TurnedModel
from q2n.transforms.model_changes import ModelChanges
from q2n.transforms.runtime import attach_quantizers
from q2n.transforms.turn import Turn

pytestmark = pytest.mark.slow


@pytest.fixture
def exact(monkeypatch):
    """Matrix products in float32, on a machine that is fast in bfloat16 too."""
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)


def tokens():
    return torch.randint(3, 128, (4, 24), generator=torch.Generator().manual_seed(3))


def source_of(layers=EVERY_LAYER, **changes):
    """Rotated, with an outlying channel that only appears under this rotation."""
    model = model_of()
    changes = ModelChanges(**{"rotate": "learned", "activation_bits": 3, **changes})
    source = changed_source(open_source(model), changes, 0, layers)
    channel = source.rotation.residual.undo(torch.eye(64)[5])
    with torch.no_grad():
        model.get_input_embeddings().weight += (
            torch.randn(128, 1, generator=torch.Generator().manual_seed(5)).sign() * channel
        )
    return source


def learned(source, steps=12, loss="divergence", weights=None, seed=0, progress=lambda: None):
    learning = RotationLearning(steps=steps, windows=1, rate=1.5, loss=loss, weights=weights)
    return learning(
        assemble(source), source.layout, source.runtime, tokens(), seed=seed, progress=progress
    )


@torch.no_grad()
def divergence(source):
    """Mean KL of the model that runs rounded from the one that does not."""
    model = assemble(source)
    log_p = model(tokens()).logits.double().log_softmax(-1)
    attach_quantizers(model, source.runtime)
    log_s = model(tokens()).logits.double().log_softmax(-1)
    return float(((log_p - log_s) * log_p.exp()).sum(-1).mean())


@pytest.mark.parametrize("changes", [{}, {"kv_bits": 4}])
def test_the_rounded_model_comes_nearer(exact, changes):
    source = source_of(**changes)
    turn, losses = learned(source, steps=20)
    assert len(losses) == 20
    assert losses[0] == pytest.approx(divergence(source), rel=0.5)  # of one window
    assert divergence(TurnedSource(source, turn)) < 0.9 * divergence(source)


def test_the_turn_is_orthogonal():
    turn, _ = learned(source_of(), steps=3)
    for q in (turn.stream, *turn.heads):
        assert q.dtype == torch.float64
        assert (q @ q.mT - torch.eye(len(q))).abs().max() < 1e-12
    assert (turn.stream - torch.eye(64)).abs().max() > 1e-3
    assert (turn.heads[0] - turn.heads[1]).abs().max() > 1e-5


def test_the_seed_decides():
    calls = []
    (one, losses), (same, _) = (
        learned(source_of(), 3, progress=lambda: calls.append(1)) for _ in "ab"
    )
    other, _ = learned(source_of(), 3, seed=1)
    assert torch.equal(one.stream, same.stream) and torch.equal(one.heads, same.heads)
    assert not torch.equal(one.stream, other.stream)
    assert len(calls) == 6 and len(losses) == 3


def test_the_first_cross_entropy_is_that_of_the_text(exact):
    source = source_of()
    _, losses = learned(source, 1, loss="cross_entropy")
    model = assemble(source)
    attach_quantizers(model, source.runtime)
    with torch.no_grad():
        each = [float(model(x[None], labels=x[None]).loss) for x in tokens()]
    assert min(abs(losses[0] - x) for x in each) < 1e-3


@torch.no_grad()
def test_states_are_those_of_the_written_model(exact):
    """With weights rounded, those of linears that are quantized alone."""
    source = source_of(LayerFilter(ignore=("*k_proj",)))
    generator = torch.Generator().manual_seed(4)
    q, n = (
        torch.linalg.qr(torch.randn(*x, generator=generator))[0] for x in ((64, 64), (3, 16, 16))
    )
    turn, grid = Turn(q, n), TokenGrid(bits=3)
    model, written = assemble(source), assemble(TurnedSource(source, turn))
    rounded = 0
    for name, weight in written.named_parameters():
        if "proj" in name and "k_proj" not in name:
            weight.copy_(grid.quantize(weight))
            rounded += 1
    assert rounded == 18
    for each in (model, written):
        attach_quantizers(each, source.runtime)
    found = _TurnedModel(model, source.layout, source.runtime, grid).states(turn, tokens()[0])
    expected = written.model(tokens()[:1]).last_hidden_state[0] @ q
    # now and then float32 rounding takes a value across a border
    assert ((found - expected).abs() < 1e-3).float().mean() > 0.9


@torch.no_grad()
def test_the_stream_is_exact_where_products_are_fast():
    """As of the model itself, which the turned one is compared with."""
    source = source_of()
    model = assemble(source)
    turn = Turn.none(64, 3, 16)
    with torch.autocast("cpu", torch.bfloat16):
        expected = model.model(tokens()[:1]).last_hidden_state[0]
        turned = _TurnedModel(model, source.layout, source.runtime, None)
        found = turned.states(turn, tokens()[0])
    assert expected.dtype == found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_a_loss_that_is_not_finite_is_named():
    source = source_of()
    model = assemble(source)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[3, 4] = torch.nan
    learning = RotationLearning(steps=2, windows=2, rate=1.5, loss="cross_entropy", weights=None)
    with pytest.raises(NumericalError, match="loss of step 0 of the learned rotation is nan"):
        learning(model, source.layout, source.runtime, tokens(), seed=0, progress=lambda: None)
