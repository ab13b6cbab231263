import pytest

from q2n.patterns import matches

NAME = "model.layers.3.mlp.down_proj"


@pytest.mark.parametrize(
    "pattern", [NAME, "*", "*.mlp.*", "*.[03].*", "model.layers.?.mlp.down_proj", "down_proj"]
)
def test_patterns_that_match(pattern):
    assert matches(pattern, NAME)


@pytest.mark.parametrize(
    "pattern", ["mlp", "mlp.down_proj", "DOWN_PROJ", "*.[12].*", "down", "layers.*"]
)
def test_patterns_that_do_not_match(pattern):
    assert not matches(pattern, NAME)
