import pytest

from q2n.errors import InputError
from q2n.grids.per_token import TokenGrid
from q2n.transforms.model_changes import ModelChanges


def test_grids_follow_the_options():
    changes = ModelChanges(
        rotate="random",
        activation_bits=4,
        activation_clip_ratio=0.8,
        kv_bits=4,
        kv_group_size=8,
    )
    assert changes.activations == TokenGrid(bits=4, clip=0.8)
    assert changes.cache == TokenGrid(bits=4, symmetric=False, group_size=8, clip=0.95)
    assert not changes.none
    assert changes.title == "rotated (random), activations in 4 bits, keys and values in 4 bits"


def test_each_change_stands_alone():
    plain = ModelChanges()
    assert plain.none and plain.activations is None and plain.cache is None and plain.title == ""
    for options in ({"rotate": "hadamard"}, {"activation_bits": 8}, {"kv_bits": 3}):
        assert not ModelChanges(**options).none
    unused = ModelChanges(activation_clip_ratio=0.5, kv_group_size=8, activation_symmetric=False)
    assert unused.none  # says how to round what is not rounded


def test_values_that_cannot_be():
    for options, match in (
        ({"activation_bits": 1}, "activation_bits is 1; it takes one of 2, 3, .* 8, 16"),
        ({"activation_clip_ratio": 0.0}, "activation_clip_ratio is 0.0; .* above 0 and at most 1"),
        ({"kv_bits": 12}, "kv_bits is 12; it takes one of 2, 3, .* 8, 16"),
        ({"kv_clip_ratio": 2.0}, "kv_clip_ratio is 2.0; .* above 0 and at most 1"),
        ({"kv_group_size": 0}, "kv_group_size is 0; .* at least 1 and at most 1000000, or -1"),
        ({"rotate": "sideways"}, "rotate is 'sideways'; it takes one of none, hadamard, random"),
    ):
        with pytest.raises(InputError, match=match):
            ModelChanges(**options)
