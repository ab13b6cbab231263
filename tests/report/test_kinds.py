"""Layers by kind."""

from q2n.report.kinds import kinds_of


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
