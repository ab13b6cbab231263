"""Descriptions and tensors that contradict each other, each kind of contradiction in a folder that
was written whole: one line, before anything of a claimed size is allocated."""

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from formats.native_folders import written
from formats.tiny_models import llama, random_layer
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from q2n.errors import InputError
from q2n.formats import FORMATS
from q2n.formats.load import load_model
from q2n.formats.native_entry import NativeEntry, described_layers
from q2n.formats.stored import StoredLayer
from q2n.layers import REPRESENTATIONS
from q2n.layers.blocks import BlockLinear
from q2n.layers.centred import CentredLinear
from q2n.layers.codebook import CodebookLinear
from q2n.layers.exl3 import EXL3Linear
from q2n.layers.levels import LloydMaxLinear, TrellisLinear
from q2n.layers.outliers import OutlierLinear
from q2n.layers.partly_binary import PartlyBinaryLinear
from q2n.layers.quantized import QuantizedLinear
from q2n.layers.rotated import RotatedLinear
from q2n.layers.salient_columns import SalientColumnsLinear
from q2n.models.source import open_source

Description = dict[str, Any]


def layers_of_each_kind() -> dict[str, QuantizedLinear]:
    """Of 64 x 64 weights."""
    random = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 8, (64, 64), dtype=torch.uint8, generator=random)
    grid = random_layer((64, 64), 3, 32, False, torch.float16)
    low = torch.rand(64, 64, generator=random) < 0.9
    count = int(low.sum())
    centred = {"codes": codes, "scale": torch.ones(64), "bits": 3}
    return {
        "uniform": grid,
        "symmetric": random_layer((64, 64), 3, 32, True, torch.float16),
        "centred": CentredLinear(**centred),
        "lloyd-max": LloydMaxLinear(**centred),
        "trellis": TrellisLinear(**centred),
        "rotated": RotatedLinear(
            inner=CentredLinear(**centred),
            projection="kronecker",
            seed=5,
            rescale=torch.ones(64, dtype=torch.bfloat16),
        ),
        "codebook": CodebookLinear(codes=codes, codebook=torch.rand(64, 8), bits=3),
        "partly_binary": PartlyBinaryLinear(
            low=low,
            low_codes=torch.ones(count, dtype=torch.uint8),
            high_codes=torch.ones(64 * 64 - count, dtype=torch.uint8),
            mean=torch.zeros(64, 2),
            magnitude=torch.ones(64, 2),
            scale=torch.ones(64, 1),
            zero=torch.zeros(64, 1, dtype=torch.uint8),
            low_bits=1,
            high_bits=8,
            group_size=32,
        ),
        "blocks": BlockLinear(
            codes=codes,
            d=torch.ones(64, 2).half(),
            m=torch.ones(64, 2).half(),
            block_type="q4_1",
            bits=4,
        ),
        "outliers": OutlierLinear.of(grid, torch.tensor([3, 60]), torch.ones(64, 2)),
        "salient_columns": SalientColumnsLinear(
            salient=torch.arange(64) < 13,
            low_codes=torch.ones(64, 51, dtype=torch.uint8),
            high_codes=torch.ones(64, 13, dtype=torch.uint8),
            mean=torch.zeros(64),
            magnitude=torch.ones(64),
            factor=torch.ones(51),
            scale=torch.ones(64),
            zero=torch.zeros(64, dtype=torch.uint8),
            high_bits=4,
        ),
        "trellis_tiles": EXL3Linear(
            codes=codes.repeat(2, 2),
            suh=torch.ones(64).half(),
            svh=torch.ones(64).half(),
            bits=3,
            codebook="mul1",
        ),
    }


LAYERS = layers_of_each_kind()


def description(kind: str) -> Description:
    layers = {"layer": StoredLayer.of(LAYERS[kind])}
    return json.loads(json.dumps(NativeEntry().quantization_config(layers, {})))


def test_every_representation_is_tried() -> None:
    assert {layer.kind for layer in LAYERS.values()} == REPRESENTATIONS.keys()


@pytest.mark.parametrize("kind", LAYERS)
def test_a_description_of_each_kind_is_read(kind: str) -> None:
    (layer,) = described_layers(description(kind)).values()
    assert layer == StoredLayer.of(LAYERS[kind])


HUGE = 10**9
WRONG_SIZES = (0, -1, 1, 63, HUGE, 10**30, 1.5, "64", True, None)


def changes_of(group: Description) -> list[tuple[tuple[str, ...], Any]]:
    """Places in a group of layers and what they are changed to: everything that can be said of a
    layer, said wrongly."""
    changes: list[tuple[tuple[str, ...], Any]] = [
        (("kind",), x) for x in ("magic", None, 5, [], "uniform ")
    ]
    changes += [(("shape",), x) for x in ([64], [], "ab", None, [64, 64, 64], {}, 64)]
    changes += [(("shape",), [x, 64]) for x in WRONG_SIZES] + [(("shape",), [HUGE, HUGE])]
    changes += [(("metadata",), x) for x in (None, [], "x", {}, {"x": 1})]
    changes += [(("metadata", "unknown"), 1), (("tensors", "unknown"), {}), (("unknown",), 1)]
    changes += [(("tensors",), x) for x in (None, [], {})]
    changes += [(("layers",), x) for x in (None, "layer", [5], ["layer", "layer"])]
    for name, value in group["metadata"].items():
        wrong = [None, [], {}, "x", 0.5, -(2**70), 2**70]
        wrong += [0, 99, 9] if name.endswith("bits") else []
        wrong += [0, -1, 31, 65, HUGE] if name == "group_size" else []
        wrong += ["false", 1] if isinstance(value, bool) else []
        changes += [(("metadata", name), x) for x in wrong]
    for name, tensor in group["tensors"].items():
        place = ("tensors", name)
        changes += [(place, x) for x in (None, [], {}, {**tensor, "more": 1})]
        changes += [((*place, "dtype"), x) for x in ("int64", "float64", "nn", "float8_e4m3fn", 5)]
        changes += [((*place, "bits"), x) for x in (0, 9, 99, -1, "3", 1.5, 5)]
        changes += [((*place, "shape"), x) for x in ([], None, "x", [HUGE, HUGE], [64, 64, 64])]
        size = tensor["shape"][-1]
        changes += [((*place, "shape"), [*tensor["shape"][:-1], x]) for x in (size + 1, HUGE, -1)]
    return changes


@pytest.mark.parametrize("kind", LAYERS)
def test_a_wrong_description_gets_one_line(kind: str) -> None:
    whole, read = description(kind), 0
    (group,) = whole["layer_groups"]
    for place, wrong in changes_of(group):
        changed = deepcopy(whole)
        entry = changed["layer_groups"][0]
        for step in place[:-1]:
            entry = entry[step]
        if entry.get(place[-1], "nothing") == wrong and type(wrong) is type(entry[place[-1]]):
            continue
        entry[place[-1]] = wrong
        with pytest.raises(InputError) as refused:
            described_layers(changed)
            pytest.fail(f"{place} was read as {wrong!r}")
        assert "\n" not in str(refused.value) and len(str(refused.value)) < 800
        read += 1
    assert read > 60


def test_a_layer_that_is_nested_without_end_gets_one_line() -> None:
    whole = description("rotated")
    (group,) = whole["layer_groups"]
    for depth in range(2000):
        group["metadata"]["inner_" * depth + "inner"] = "rotated"
    with pytest.raises(InputError):
        described_layers(whole)


def test_a_rotation_that_would_be_a_dense_matrix_of_a_large_width_is_refused() -> None:
    prime = 1_000_003
    inner = CentredLinear(codes=torch.zeros(1, 1, dtype=torch.uint8), scale=torch.ones(1), bits=1)
    layer = RotatedLinear(inner=inner, projection="kronecker", seed=0)
    text = json.dumps(NativeEntry().quantization_config({"layer": StoredLayer.of(layer)}, {}))
    whole = json.loads(text)
    (group,) = whole["layer_groups"]
    group["shape"] = group["tensors"]["inner_codes"]["shape"] = [prime, 1]
    with pytest.raises(InputError, match="1000003"):
        described_layers(whole)


@pytest.mark.parametrize(
    ("entry", "wrong"),
    [
        ("version", 99),
        ("version", None),
        ("layer_groups", None),
        ("layer_groups", {}),
        ("layer_groups", [5]),
        ("modules_not_converted", "lm_head"),
        ("copied", [5]),
        ("unknown", 1),
    ],
)
def test_an_entry_that_is_not_known_gets_one_line(entry: str, wrong: Any) -> None:
    with pytest.raises(InputError):
        described_layers({**description("uniform"), entry: wrong})


KEY = "model.layers.0.self_attn.q_proj"
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A native checkpoint with one quantized linear, by its kind."""
    place, model = tmp_path_factory.mktemp("native"), llama()
    return {kind: written(place / kind, model, {KEY: layer}) for kind, layer in LAYERS.items()}


def with_numbers(name: str, value: float) -> Callable[[Tensors], Tensors]:
    def change(tensors: Tensors) -> Tensors:
        numbers = tensors[f"{KEY}.{name}"].clone()
        numbers.view(-1)[0] = value
        return {**tensors, f"{KEY}.{name}": numbers}

    return change


def with_tensor(name: str, tensor: torch.Tensor) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {**tensors, name: tensor}


def as_dtype(name: str, dtype: torch.dtype) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {**tensors, f"{KEY}.{name}": tensors[f"{KEY}.{name}"].to(dtype)}


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        ("uniform", with_numbers("scale", float("nan")), "scale has NaN"),
        ("symmetric", with_numbers("scale", float("inf")), "scale has NaN or Inf"),
        ("codebook", with_numbers("codebook", float("nan")), "codebook has NaN"),
        ("rotated", with_numbers("rescale", float("inf")), "rescale has NaN or Inf"),
        ("outliers", with_numbers("columns", 64), "different columns"),
        ("outliers", with_numbers("columns", -1), "different columns"),
        ("outliers", with_numbers("columns", 60), "different columns"),
        ("outliers", with_numbers("values", float("nan")), "values has NaN"),
        ("partly_binary", with_numbers("low", -1), "weights are high, with"),
        ("salient_columns", with_numbers("salient", -1), "columns are salient, with 13 of codes"),
        ("salient_columns", with_numbers("factor", float("inf")), "factor has NaN or Inf"),
        ("uniform", as_dtype("scale", torch.float32), "scale has dtype torch.float32"),
        ("uniform", as_dtype("codes", torch.int64), "codes has dtype"),
        ("uniform", with_tensor(f"{KEY}.extra", torch.ones(3)), "q_proj.extra.* no place"),
        ("uniform", with_tensor(f"{KEY}.weight", torch.ones(64, 64)), "weight.* no place"),
        ("uniform", with_tensor("model.more.weight", torch.ones(3)), "more.weight.* no place"),
    ],
)
def test_tensors_that_contradict_get_one_line(
    folders: dict[str, Path], kind: str, change: Callable[[Tensors], Tensors], words: str
) -> None:
    file = folders[kind] / "model.safetensors"
    whole = load_file(file)
    try:
        save_file(change(whole), file, metadata={"format": "pt"})
        for read in (AutoModelForCausalLM.from_pretrained, load_model):
            with pytest.raises(InputError, match=words) as refused:
                read(folders[kind])
            assert "\n" not in str(refused.value)
    finally:
        save_file(whole, file, metadata={"format": "pt"})


def test_tensors_that_are_named_as_copied_are_let_be(tmp_path: Path) -> None:
    out = written(tmp_path / "out", llama(), {KEY: LAYERS["uniform"]})
    file, config = out / "model.safetensors", out / "config.json"
    save_file({**load_file(file), "mtp.weight": torch.ones(3)}, file, metadata={"format": "pt"})
    values = json.loads(config.read_text())
    values["quantization_config"]["copied"] = ["mtp.weight"]
    config.write_text(json.dumps(values))
    for read in (AutoModelForCausalLM.from_pretrained, load_model):
        read(out)


PUBLIC: dict[str, list[tuple[Callable[[Tensors], Tensors], str]]] = {
    "compressed-tensors": [
        (with_tensor(f"{KEY}.weight_shape", torch.tensor([64, HUGE])), "has shape"),
        (with_tensor(f"{KEY}.weight_shape", torch.tensor([HUGE, HUGE])), "has shape"),
        (with_tensor(f"{KEY}.weight_shape", torch.tensor([-64, 64])), "no shape of a matrix"),
        (with_tensor(f"{KEY}.weight_shape", torch.tensor([64])), "no shape of a matrix"),
        (with_tensor(f"{KEY}.weight_scale", torch.ones(64, 3)), "weight_scale has shape"),
        (with_tensor(f"{KEY}.weight_scale", torch.ones(64, 2).int()), "no floating-point"),
        (with_numbers("weight_scale", float("nan")), "weight_scale has NaN"),
        (as_dtype("weight_packed", torch.int64), "weight_packed has dtype"),
        (with_tensor(f"{KEY}.weight_zero_point", torch.ones(1, 1).int()), "has shape"),
        (with_tensor(f"{KEY}.weight", torch.ones(64, 64)), "weight.* no place"),
        (lambda tensors: {k: x for k, x in tensors.items() if "weight_scale" not in k}, "missing"),
    ],
    "gptq_v2": [
        (with_numbers("g_idx", 2), "g_idx names groups"),
        (with_numbers("g_idx", -1), "g_idx names groups"),
        (with_tensor(f"{KEY}.g_idx", torch.zeros(31, dtype=torch.int32)), "has shape"),
        (with_numbers("scales", float("inf")), "scales has NaN, Inf"),
        (with_tensor(f"{KEY}.scales", torch.ones(3, 64)), "scales has shape"),
        (with_tensor(f"{KEY}.qzeros", torch.ones(2, 7).int()), "qzeros has shape"),
        (as_dtype("qweight", torch.float32), "qweight has dtype"),
        (lambda tensors: {k: x for k, x in tensors.items() if "g_idx" not in k}, "g_idx"),
    ],
}
CASES = [(name, change, words) for name, cases in PUBLIC.items() for change, words in cases]


@pytest.mark.parametrize(("name", "change", "words"), CASES)
def test_public_formats_with_tensors_that_contradict_get_one_line(
    tmp_path: Path, name: str, change: Callable[[Tensors], Tensors], words: str
) -> None:
    FORMATS[name].write(tmp_path / "out", open_source(llama()), {KEY: LAYERS["uniform"]})
    file = tmp_path / "out" / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})
    with pytest.raises(InputError, match=words) as refused:
        load_model(tmp_path / "out")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", PUBLIC)
@pytest.mark.parametrize("wrong", [0, 1, 9, 99, -1, "3", None, 3.5, True, {}, [3], 10**30])
def test_public_formats_of_impossible_bits_get_one_line(
    tmp_path: Path, name: str, wrong: Any
) -> None:
    FORMATS[name].write(tmp_path / "out", open_source(llama()), {KEY: LAYERS["uniform"]})
    file = tmp_path / "out" / "config.json"
    text = file.read_text()
    for entry in ('"num_bits": 3', '"bits": 3', '"group_size": 32'):
        if entry in text:
            file.write_text(text.replace(entry, f"{entry.partition(':')[0]}: {json.dumps(wrong)}"))
            with pytest.raises(InputError) as refused:
                load_model(tmp_path / "out")
            assert "\n" not in str(refused.value)


def part(**values: Any) -> Description:
    usual = {"rotated": {}, "rounded": [], "activations": None, "attention": "", "keys": None}
    return {**usual, "cache": None, **values}


def rotation(**values: Any) -> Description:
    return part(rotated={KEY: {"factors": [{"kind": "hadamard", "size": 64}], **values}})


@pytest.mark.parametrize(
    "runtime",
    [
        5,
        [],
        {"unknown": 1},
        {"parts": None},
        {"parts": {}},
        {"parts": part(rotated=5)},
        {"parts": part(rotated={"nothing": {"factors": [{"kind": "identity", "size": 64}]}})},
        {"parts": rotation(factors=[{"kind": "hadamard", "size": 32}])},
        {"parts": rotation(factors=[{"kind": "hadamard", "size": 10**9}])},
        {"parts": rotation(factors=[{"kind": "identity", "size": 2**19}] * 9)},
        {"parts": rotation(factors=[{"kind": "magic", "size": 64}])},
        {"parts": rotation(factors=[{"kind": "dense", "size": 64, "blocks": [[[1.0]]]}])},
        {"parts": rotation(factors=[])},
        {"parts": rotation(signs=[1] * 63)},
        {"parts": rotation(signs=[2] * 64)},
        {"parts": rotation(into=[0] * 64)},
        {"parts": rotation(into=list(range(1, 65)))},
        {"parts": rotation(out=list(range(63)))},
        {"parts": part(rounded=[KEY], activations={"bits": 99})},
        {"parts": part(rounded=[KEY], activations={"bits": 4, "group_size": 63})},
        {"parts": part(rounded=[KEY], activations={"bits": 4, "clip": 7})},
        {"parts": part(rounded=[KEY], activations={"bits": 4, "more": 7})},
        {"parts": part(attention="model.layers.0.self_attn", cache={"bits": 4, "group_size": 7})},
    ],
)
def test_runtime_parts_that_fit_nothing_get_one_line(
    folders: dict[str, Path], runtime: Any, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for file in folders["uniform"].iterdir():
        (out / file.name).write_bytes(file.read_bytes())
    config = json.loads((out / "config.json").read_text())
    config["quantization_config"]["runtime"] = runtime
    (out / "config.json").write_text(json.dumps(config))
    for read in (AutoModelForCausalLM.from_pretrained, load_model):
        with pytest.raises(InputError) as refused:
            read(out)
        assert "\n" not in str(refused.value)
