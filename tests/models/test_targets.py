"""Targets: [out, in] whatever the layout; and which layers a filter selects."""

import pytest
import torch
from tiny import ARCHITECTURES, TRANSPOSED, tiny_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from q2n.errors import InputError
from q2n.models.blocks import BlockwiseModel
from q2n.models.source import open_source
from q2n.models.targets import LayerFilter, other_linears, small_targets, targets_in


def modules() -> nn.ModuleDict:
    """One module of each kind with 5 outputs and 3 inputs."""
    torch.manual_seed(0)
    pair = nn.ModuleDict({"linear": nn.Linear(3, 5), "conv": Conv1D(5, 3)})
    return pair.requires_grad_(False)


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_a_weight_multiplies_as_its_module_does(kind):
    root = modules()
    target, module = targets_in(root)[kind], root[kind]
    nn.init.normal_(module.bias)
    rows = torch.randn(7, 3)
    assert target.shape == tuple(target.weight().shape) == (5, 3)
    # float32 sums of 3 products each
    torch.testing.assert_close(module(rows), rows @ target.weight().T + module.bias)
    new = torch.randn(5, 3)
    target.set(new)
    torch.testing.assert_close(module(rows), rows @ new.T + module.bias)


class Grouped(nn.Linear):
    """Holds a matrix as a linear does, and multiplies by parts of it."""

    def forward(self, x):
        return torch.cat([x @ part.T for part in self.weight.chunk(2)])


def test_a_linear_with_another_product_is_no_target():
    root = nn.ModuleDict({"own": Grouped(3, 4), "linear": nn.Linear(3, 4)})
    assert list(targets_in(root)) == ["linear"] and other_linears(root) == ["own"]


def test_falcons_linears_are_targets():
    model = tiny_model("falcon")
    assert not other_linears(model) and any("query" in name for name in targets_in(model))


@pytest.mark.parametrize(("kind", "transposed"), [("linear", False), ("conv", True)])
def test_a_stored_weight_has_the_parameters_layout(kind, transposed):
    root = modules()
    target = targets_in(root)[kind]
    assert target.transposed is transposed and target.parameter == f"{kind}.weight"
    assert torch.equal(target.stored(target.weight()), root.get_parameter(target.parameter))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_are_read_as_float32_set_as_half(dtype):
    root = modules().to(dtype)
    for target in targets_in(root).values():
        assert target.weight().dtype == torch.float32
        new = torch.randn(5, 3)
        target.set(new)
        assert torch.equal(target.weight(), new.to(dtype).float())
        assert root.get_parameter(target.parameter).dtype == dtype


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, *TRANSPOSED])
def test_shapes_are_known_without_weights(architecture):
    meta, real = tiny_model(architecture).to("meta"), tiny_model(architecture)
    shapes = {name: target.shape for name, target in targets_in(meta).items()}
    assert shapes == {n: tuple(t.weight().shape) for n, t in targets_in(real).items()}
    assert list(shapes) == list(targets_in(real))


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, *TRANSPOSED])
def test_every_matrix_but_the_embeddings_is_listed(architecture):
    model = tiny_model(architecture, tie_word_embeddings=False)
    tables = {n for n, module in model.named_modules() if isinstance(module, nn.Embedding)}
    expected = [
        name.removesuffix(".weight")
        for name, parameter in model.named_parameters()
        if parameter.ndim == 2 and name.removesuffix(".weight") not in tables
    ]
    assert sorted(targets_in(model)) == sorted(expected)


DOWN = "model.layers.3.mlp.down_proj"


@pytest.mark.parametrize(
    ("pattern", "selected"),
    [
        (DOWN, True),
        ("down_proj", True),
        ("*down_proj", True),
        ("*.mlp.*", True),
        ("model.layers.[03].*", True),
        ("model.layers.?.mlp.down_proj", True),
        ("mlp.down_proj", False),
        ("layers", False),
        ("down", False),
        ("Down_proj", False),
        ("model.layers.3", False),
        ("down_pro?", False),
    ],
)
def test_patterns_match_full_names_or_last_parts(pattern, selected):
    assert LayerFilter(only=(pattern,)).keeps(DOWN) is selected
    assert LayerFilter(ignore=(pattern,)).keeps(DOWN) is not selected


def test_an_ignored_layer_is_ignored_though_named():
    layers = LayerFilter(ignore=("down_proj",), only=("*.3.*", "up_proj"))
    assert not layers.keeps(DOWN)
    assert layers.keeps("model.layers.3.mlp.up_proj") and layers.keeps("model.layers.0.mlp.up_proj")
    assert not layers.keeps("model.layers.0.mlp.gate_proj")
    assert LayerFilter().keeps(DOWN)


def blocks(**patterns) -> BlockwiseModel:
    return BlockwiseModel(open_source(tiny_model(layers=2)), layers=LayerFilter(**patterns))


@pytest.mark.parametrize("option", ["ignore", "only"])
def test_a_pattern_without_a_match_is_named(option):
    with pytest.raises(InputError, match=rf"{option} 'lm_head'.*model\.layers\.0\.self_attn"):
        blocks(**{option: ("down_proj", "lm_head")})


def test_a_filter_that_leaves_nothing_is_refused():
    with pytest.raises(InputError, match=r"ignore \* and only \(all\) leave no layer"):
        blocks(ignore=("*",))
    with pytest.raises(InputError, match=r"ignore \*mlp\* and only up_proj leave no layer"):
        blocks(ignore=("*mlp*",), only=("up_proj",))


def test_a_model_lists_the_selected_layers_alone():
    model = blocks(ignore=("down_proj",), only=("*.1.mlp.*",))
    expected = [f"model.layers.1.mlp.{name}_proj" for name in ("gate", "up")]
    assert list(model.targets()) == expected
    assert [(k, t.shape) for k, t in model.targets().items()] == [(k, (96, 64)) for k in expected]
    targets, ignored = model.targets_of(1, model.load_block(1))
    assert list(targets) == ["mlp.gate_proj", "mlp.up_proj"]
    assert len(ignored) == 5 and "mlp.down_proj" in ignored


def mixture():
    """A block with a router of 4 experts and 2-wide coefficients beside its linears."""
    model = tiny_model(layers=2)
    for block in model.model.layers:
        block.router, block.mixing = torch.nn.Linear(64, 4), torch.nn.Linear(2, 64)
        block.experts = torch.nn.ParameterList([torch.zeros(4, 64, 96)])
    return model


def test_small_layers_stay_in_full_precision_and_are_named():
    model = BlockwiseModel(open_source(mixture()))
    names = {name.removeprefix("model.layers.0.") for name in model.targets()}
    assert "self_attn.k_proj" in names and not names & {"router", "mixing"}
    _, ignored = model.targets_of(1, model.load_block(1))
    assert ignored == ["router", "mixing"]
    (note,) = model.notes()
    assert "model.layers.*.router, model.layers.*.mixing; --only" in note
    assert BlockwiseModel(open_source(tiny_model(layers=2))).notes() == []


def test_a_small_layer_that_is_asked_for_is_quantized():
    asked = LayerFilter(only=("router",))
    model = BlockwiseModel(open_source(mixture()), layers=asked)
    assert list(model.targets()) == ["model.layers.0.router", "model.layers.1.router"]
    assert model.notes() == []


def test_narrow_layers_that_hold_much_of_a_block_are_not_small():
    """As every linear of a tiny model."""
    assert not small_targets({"block": tiny_model(layers=1).model.layers[0]})
