"""A turned model computes what the rotated one does."""

import pytest
import torch
from rotatable import MODELS, model_of, tokens

from q2n.models.rotated_source import changed_source
from q2n.models.source import assemble, open_source
from q2n.models.turned_source import TurnedSource
from q2n.transforms.model_changes import ModelChanges
from q2n.transforms.turn import Turn

LEARNED = ModelChanges(rotate="learned", activation_bits=4)


def random_turn(layout):
    """Orthogonal matrices far from the identity, others in each block."""
    generator = torch.Generator().manual_seed(4)

    def draw(*shape):
        square = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return torch.linalg.qr(square)[0]

    sizes = layout.sizes
    return Turn(
        draw(sizes.hidden, sizes.hidden), draw(layout.count, sizes.head_dim, sizes.head_dim)
    )


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_the_turned_model_gives_the_same_logits(name):
    model = model_of(name)
    source = changed_source(open_source(model), LEARNED, 3)
    turned = TurnedSource(source, random_turn(source.layout))
    found = assemble(turned)(tokens()).logits
    # logits are about 4; float32 rounding through three blocks, twice
    torch.testing.assert_close(found, model(tokens()).logits, rtol=0, atol=4e-5)
    for weight in ("self_attn.v_proj", "self_attn.o_proj", "mlp.down_proj", "mlp.up_proj"):
        name = f"model.layers.1.{weight}.weight"
        assert (turned.tensor(name) - source.tensor(name)).abs().max() > 0.01


@torch.no_grad()
def test_mixed_heads_may_be_turned_too():
    model = model_of()
    source = changed_source(open_source(model), ModelChanges(rotate="hadamard"), 3)
    turned = TurnedSource(source, random_turn(source.layout))
    found = assemble(turned)(tokens()).logits
    torch.testing.assert_close(found, model(tokens()).logits, rtol=0, atol=4e-5)


def test_no_turn_changes_no_number():
    source = changed_source(open_source(model_of("biases")), LEARNED, 3)
    sizes = source.layout.sizes
    turned = TurnedSource(source, Turn.none(sizes.hidden, source.layout.count, sizes.head_dim))
    assert all(torch.equal(turned.tensor(x), source.tensor(x)) for x in source.names())


def test_heads_are_mixed_at_runtime():
    source = changed_source(open_source(model_of()), LEARNED, 3)
    assert list(source.runtime.rotated) == [
        "model.layers.*.self_attn.o_proj",
        "model.layers.*.mlp.down_proj",
    ]
