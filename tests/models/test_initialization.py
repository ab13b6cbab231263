"""Which modules look for the weights of their linears when a model is loaded."""

import pytest
from tiny import tiny_model

from q2n.models.initialization import modules_that_set
from q2n.models.targets import targets_in


@pytest.mark.parametrize("architecture", ["mamba", "mamba2", "falcon_mamba"])
def test_mixers_that_set_a_weight_are_found(architecture: str) -> None:
    model = tiny_model(architecture, layers=2).to("meta")
    linears = [name for name in targets_in(model) if "mixer" in name]
    expected = [f"backbone.layers.{number}.mixer" for number in range(2)]
    assert modules_that_set(model, linears) == expected


@pytest.mark.parametrize("architecture", ["llama", "jamba", "zamba2"])
def test_other_models_do_not_look(architecture: str) -> None:
    model = tiny_model(architecture, layers=4)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    assert modules_that_set(model, targets_in(model)) == []
    assert all(parameter.equal(before[name]) for name, parameter in model.named_parameters())
