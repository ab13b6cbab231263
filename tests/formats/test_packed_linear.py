"""Packed layers of every representation against their dense weight."""

import copy
import inspect
import pickle
from pathlib import Path

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from formats.every_layer import ROTATED, UNROTATED, Shape, layer_of, uniform
from formats.native_folders import written
from formats.tiny_models import llama, quantized_in_memory, random_layer, random_layers
from torch import nn
from torch.nn import functional
from transformers import AutoModelForCausalLM

from q2n.formats import packed_kinds
from q2n.formats import packed_weight as room
from q2n.formats.native import Native
from q2n.formats.packed_linear import PackedLinear
from q2n.formats.stored import StoredLayer
from q2n.layers import REPRESENTATIONS
from q2n.layers.blocks import BlockLinear
from q2n.layers.exl3 import EXL3Linear
from q2n.layers.outliers import OutlierLinear
from q2n.layers.quantized import QuantizedLinear
from q2n.layers.salient_columns import SalientColumnsLinear

EVERY = pytest.mark.parametrize("make", [*UNROTATED.values(), *ROTATED.values()])
SHAPES = [(48, 32), (7, 61), (1, 40), (37, 16), (170, 46)]
"""Whole words; odd numbers of rows and columns, some of them prime."""


def filled(layer: QuantizedLinear, bias: nn.Parameter | None = None) -> PackedLinear:
    module = PackedLinear(StoredLayer.of(layer), bias)
    for part, tensor in Native().encode("layer", layer, torch.float32).items():
        setattr(module, part, nn.Parameter(tensor, requires_grad=False))
    return module


def tokens(shape: Shape, *batch: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    random = torch.Generator().manual_seed(3)
    return torch.randn(*batch, shape[1], generator=random).to(dtype)


def assert_multiplies(module, layer, x, bias=None, tolerance=2e-5) -> None:
    """To the rounding of the dtype of x, which a result may pass through several times."""
    weight = layer.dequantize().double()
    exact = functional.linear(x.double(), weight, None if bias is None else bias.double())
    error = (module(x).double() - exact).norm() / exact.norm()
    assert module(x).dtype == x.dtype and module(x).shape == exact.shape
    assert error <= tolerance * {torch.bfloat16: 500, torch.float16: 100}.get(x.dtype, 1)


def test_every_representation_has_a_kernel() -> None:
    """Blocks are for llama.cpp, EXL3's tiles for exllamav3, which have their own."""
    assert REPRESENTATIONS.keys() - packed_kinds._KINDS.keys() == {
        BlockLinear.kind,
        EXL3Linear.kind,
    }


@EVERY
@pytest.mark.parametrize("shape", SHAPES)
def test_few_and_many_tokens_are_multiplied(make, shape) -> None:
    layer = layer_of(make, shape)
    bias = nn.Parameter(tokens(shape, 1)[0, :1].expand(shape[0]).clone(), requires_grad=False)
    module, biased = filled(layer), filled(layer, bias)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for batch in ((1,), (2, 4), (9,), (3, 100)):
            x = tokens(shape, *batch, dtype=dtype)
            assert_multiplies(module, layer, x)
        biased.bias.data = bias.data.to(dtype)
        assert_multiplies(biased, layer, tokens(shape, 5, dtype=dtype), biased.bias)
        assert_multiplies(biased, layer, tokens(shape, 12, dtype=dtype), biased.bias)


@pytest.mark.parametrize("make", UNROTATED.values(), ids=UNROTATED)
def test_a_prompt_meets_the_rounded_dense_weight(make) -> None:
    layer, x = layer_of(make, (33, 46)), tokens((33, 46), 20, dtype=torch.bfloat16)
    if isinstance(layer, OutlierLinear | SalientColumnsLinear):
        pytest.skip("its two kinds of columns are multiplied by themselves")
    expected = functional.linear(x, layer.dequantize().bfloat16())
    assert torch.equal(filled(layer)(x), expected)


@EVERY
def test_panels_make_no_difference(make, monkeypatch) -> None:
    layer, x = layer_of(make, (170, 46)), tokens((170, 46), 300)
    whole = filled(layer)(x)
    monkeypatch.setattr(room, "_PANEL", 46 * 50)
    torch.testing.assert_close(filled(layer)(x), whole)


def test_no_panel_is_larger_than_allowed(monkeypatch) -> None:
    layer, seen = layer_of(uniform, (64, 32)), []
    rows = room.dispatch.packed_rows

    def counted(*arguments):
        seen.append(rows(*arguments))
        return seen[-1]

    monkeypatch.setattr(room, "_PANEL", 320)
    monkeypatch.setattr(room.dispatch, "packed_rows", counted)
    filled(layer)(tokens((64, 32), 20))
    assert [len(panel) for panel in seen] == [9, 9, 9, 9, 9, 9, 10]


@pytest.mark.parametrize("few", [1, 20])
def test_few_tokens_need_no_dense_weight(few, monkeypatch) -> None:
    module = filled(layer_of(ROTATED["rotated trellis"], (48, 32)))
    monkeypatch.setattr(PackedLinear, "_dense", None)
    monkeypatch.setattr(PackedLinear, "quantized", None)
    module(tokens((48, 32), few))


@EVERY
def test_without_tokens_no_row_is_made(make, monkeypatch) -> None:
    """An expert that is idle: the kernels for a GPU take one token at least."""
    layer = layer_of(make, (48, 32))
    monkeypatch.setattr(room.dispatch, "packed_product", None)
    monkeypatch.setattr(room.dispatch, "packed_rows", None)
    result = filled(layer)(tokens((48, 32), 0, dtype=torch.bfloat16))
    assert result.shape == (0, 48) and result.dtype == torch.bfloat16


def test_no_tokens_and_float64_are_multiplied() -> None:
    layer = layer_of(uniform, (48, 32))
    assert filled(layer)(tokens((48, 32), 0)).shape == (0, 48)
    assert_multiplies(filled(layer), layer, tokens((48, 32), 3).double(), tolerance=1e-12)


@pytest.mark.parametrize("change", ["replaced", "copied into", "moved"])
def test_new_parameters_are_seen(change) -> None:
    first, second = (layer_of(uniform, (48, 32), seed) for seed in (0, 1))
    second = copy.copy(second)
    other = random_layer((48, 32), 3, 16, False, torch.float16, seed=9)
    module, x = filled(first), tokens((48, 32), 2)
    assert_multiplies(module, first, x)
    for part, tensor in Native().encode("layer", other, torch.float32).items():
        if change == "replaced":
            setattr(module, part, nn.Parameter(tensor, requires_grad=False))
        elif change == "copied into":
            getattr(module, part).copy_(tensor)
        else:
            getattr(module, part).data = tensor
    assert_multiplies(module, other, x)


@pytest.mark.parametrize("offload", [False, True])
def test_nothing_is_kept_of_parameters_that_go_back_to_the_disk(offload) -> None:
    module, x = filled(layer_of(uniform, (48, 32))), tokens((48, 32), 2)
    add_hook_to_module(module, AlignDevicesHook("cpu", offload=offload))
    module(x)
    assert (module._ready.weight is None) == offload


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_has_memory_of_its_own(copied) -> None:
    layer, x = layer_of(ROTATED["rotated centred"], (48, 32)), tokens((48, 32), 2)
    module = filled(layer)
    expected = module(x)
    again = copied(module)
    assert again._key != module._key and again._ready.weight is None  # it holds addresses
    for parameter in module.parameters():
        parameter.zero_()
    del module
    assert torch.equal(again(x), expected)


@EVERY
@pytest.mark.parametrize("count", [2, 20])
def test_the_gradient_at_the_inputs_is_that_of_the_dense_weight(make, count) -> None:
    layer, x = layer_of(make, (48, 32)), tokens((48, 32), count).requires_grad_()
    y = filled(layer)(x)
    y.backward(torch.ones_like(y))
    torch.testing.assert_close(x.grad, torch.ones_like(y) @ layer.dequantize())


def small(tmp_path: Path, dtype: torch.dtype = torch.float32):
    model = llama(dtype=dtype)
    layers = random_layers(model, 4, 32, False, torch.float32)
    out = written(tmp_path / "out", model, layers)
    return AutoModelForCausalLM.from_pretrained(out).eval(), quantized_in_memory(model, layers)


@torch.no_grad()
def test_batches_with_padding_generate_the_dense_text(tmp_path: Path) -> None:
    loaded, dense = small(tmp_path)
    ids = torch.tensor([[0, 0, 5, 17, 99, 3], [8, 9, 5, 1, 2, 40]])
    options = {
        "attention_mask": (ids > 0).long(),
        "max_new_tokens": 8,
        "do_sample": False,
        "pad_token_id": 0,
    }
    expected = dense.generate(ids, **options)
    assert torch.equal(loaded.generate(ids, **options), expected)


@pytest.fixture
def unchecked(monkeypatch) -> None:
    """torch.compile cannot look into the type checks that these tests put around functions."""
    monkeypatch.setattr(PackedLinear, "forward", inspect.unwrap(PackedLinear.forward))


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
@torch.no_grad()
@pytest.mark.parametrize("make", [uniform, ROTATED["rotated trellis"]])
def test_layers_compile_without_a_break_in_the_graph(make) -> None:
    shape, modules = (40, 40), [filled(layer_of(make, (40, 40), seed)) for seed in (0, 1)]
    model = nn.Sequential(modules[0], nn.SiLU(), modules[1])
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for count in (1, 20):
        x = tokens(shape, count)
        torch.testing.assert_close(compiled(x), model(x))


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
def test_a_gradient_passes_through_a_compiled_layer() -> None:
    module, x = filled(layer_of(uniform, (40, 32))), tokens((40, 32), 3).requires_grad_()
    torch.compile(module, fullgraph=True, backend="aot_eager")(x).sum().backward()
    expected = module.quantized().dequantize().sum(0).expand(3, -1)
    torch.testing.assert_close(x.grad, expected)


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
@torch.no_grad()
def test_a_compiled_model_with_a_static_cache_generates_the_dense_text(tmp_path: Path) -> None:
    loaded, dense = small(tmp_path)
    ids = torch.tensor([[5, 17, 99, 3]])
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    expected = dense.generate(ids, **options)
    static = {"cache_implementation": "static", "disable_compile": True}
    assert torch.equal(loaded.generate(ids, **static, **options), expected)
    loaded.forward = torch.compile(loaded.forward, backend="aot_eager")
    assert torch.equal(loaded.generate(ids, **static, **options), expected)
