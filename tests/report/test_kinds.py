"""Layers by kind."""

from q2n.report.kinds import kind_names, kinds_of


def test_layers_of_a_kind_are_in_the_order_of_their_blocks():
    layers = {
        "model.layers.0.q_proj": {"output_error": 0.123456, "alpha_mean": 0.99},
        "model.layers.0.k_proj": {"output_error": 0.5},
        "model.layers.1.q_proj": {"output_error": 0.2, "alpha_mean": 0.98},
    }
    seconds = {"model.layers.0.q_proj": {"seconds": 1.5}, "model.layers.1.q_proj": {"seconds": 2.0}}
    kinds = kinds_of(layers, seconds)
    assert list(kinds) == ["q_proj", "k_proj"]
    q = kinds["q_proj"]
    assert (q.blocks, q.output_error, q.alpha) == ([0, 1], [0.1235, 0.2], [0.99, 0.98])
    assert q.seconds == {"seconds": 3.5} and q.output_scales == []
    assert kinds["k_proj"].alpha == [] and kinds["k_proj"].output_error == [0.5]


def test_a_layer_without_a_value_leaves_a_gap():
    layers = {"a.0.x": {"alpha_mean": 0.9}, "a.1.x": {}}
    kind = kinds_of(layers, {})["x"]
    assert kind.alpha == [0.9, None] and kind.output_error == [None, None]


def test_two_linears_of_one_word_in_a_block_are_two_kinds() -> None:
    """Otherwise a line over the blocks goes to and fro between them."""
    layers = {
        f"transformer.h.{block}.{name}": {"output_error": error}
        for block in (0, 1)
        for name, error in (("attn.c_attn", 0.5), ("attn.c_proj", 0.1), ("mlp.c_proj", 0.2))
    }
    kinds = kinds_of(layers, {})
    assert list(kinds) == ["c_attn", "attn.c_proj", "mlp.c_proj"]
    assert kinds["attn.c_proj"].blocks == [0, 1] and kinds["mlp.c_proj"].output_error == [0.2, 0.2]


def test_experts_are_one_kind_with_the_dense_layers_of_other_blocks() -> None:
    names = [
        "model.layers.0.mlp.up_proj",
        "model.layers.1.mlp.experts.0.up_proj",
        "model.layers.1.mlp.experts.1.up_proj",
        "model.layers.1.mlp.shared_experts.up_proj",
    ]
    assert set(kind_names(names).values()) == {"up_proj"}
    assert kind_names(["7", "up"]) == {"7": "7", "up": "up"}
