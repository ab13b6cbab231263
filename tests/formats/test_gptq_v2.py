"""gptq_v2 files, read by a plain unpacker written from the format's description, by our own
reader, and by optimum + gptqmodel where they are installed."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from formats.tiny_models import (
    PROMPT,
    assert_same_model,
    llama,
    quantized_in_memory,
    qwen2,
    random_layer,
    random_layers,
)
from safetensors.torch import load_file
from tiny import tiny_tokenizer
from transformers import AutoModelForCausalLM, GPTQConfig, PreTrainedModel

from q2n.errors import InputError
from q2n.formats import FORMATS
from q2n.formats.load import load_model
from q2n.layers.uniform import UniformLinear
from q2n.models.source import open_source

FORMAT = FORMATS["gptq_v2"]


def fields(words: np.ndarray, bits: int) -> list[int]:
    """The b-bit numbers of one stream of int32 words, by way of one large integer."""
    number = sum(int(word) % 2**32 << (32 * i) for i, word in enumerate(words))
    return [(number >> (bits * i)) % 2**bits for i in range(len(words) * 32 // bits)]


def plain_weight(tensors: dict[str, torch.Tensor], name: str, bits: int) -> np.ndarray:
    """scales[g_idx] * (q - zeros[g_idx]), element by element, as [out, in]."""
    qweight, qzeros = tensors[f"{name}.qweight"].numpy(), tensors[f"{name}.qzeros"].numpy()
    scales = tensors[f"{name}.scales"].float().numpy()
    group = tensors[f"{name}.g_idx"].numpy()
    codes = [fields(qweight[:, n], bits) for n in range(qweight.shape[1])]
    zeros = [fields(row, bits) for row in qzeros]
    weight = np.empty((len(codes), len(group)), dtype=np.float32)
    for n, row in enumerate(codes):
        for k, g in enumerate(group):
            weight[n, k] = scales[g, n] * (row[k] - zeros[g][n])
    return weight


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group_size", [-1, 32])
def test_a_plain_unpacker_reads_what_was_written(
    tmp_path: Path, bits: int, symmetric: bool, group_size: int
) -> None:
    model = llama()
    layers = random_layers(model, bits, group_size, symmetric, torch.float16)
    FORMAT.write(tmp_path / "out", open_source(model), layers)
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    for name in ("model.layers.0.self_attn.k_proj", "model.layers.1.mlp.down_proj"):
        # Both compute one float32 product of the same two numbers.
        assert np.array_equal(plain_weight(tensors, name, bits), layers[name].dequantize().numpy())
    assert_same_model(load_model(tmp_path / "out"), quantized_in_memory(model, layers))


def test_configuration(tmp_path: Path) -> None:
    model = qwen2()
    layers = random_layers(model, 4, 32, False, torch.float16)
    FORMAT.write(tmp_path / "out", open_source(model), layers)
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert config == json.loads((tmp_path / "out" / "quantize_config.json").read_text())
    assert (config["bits"], config["group_size"], config["sym"]) == (4, 32, False)
    assert config["checkpoint_format"] == "gptq_v2" and config["desc_act"] is False
    loaded = load_model(tmp_path / "out")
    assert_same_model(loaded, quantized_in_memory(model, layers))
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


def test_a_short_last_group(tmp_path: Path) -> None:
    layer = random_layer((64, 96), 4, 64, False, torch.float16)
    tensors = FORMAT.codec.encode("x", layer, torch.float32)
    assert tensors["scales"].shape == (2, 64)
    tensors = {f"x.{part}": tensor for part, tensor in tensors.items()}
    assert np.array_equal(plain_weight(tensors, "x", 4), layer.dequantize().numpy())


def test_refusals() -> None:
    with pytest.raises(InputError, match="q_proj has 72 inputs, and 72 x 3 bits"):
        FORMAT.codec.check_grid("q_proj", (64, 72), bits=3, group_size=-1)
    with pytest.raises(InputError, match="q_proj has 36 outputs, and 36 x 2 bits"):
        FORMAT.codec.check_grid("q_proj", (36, 64), bits=2, group_size=-1)
    with pytest.raises(InputError, match="groups of 48"):
        FORMAT.codec.check_grid("q_proj", (64, 96), bits=4, group_size=48)
    with pytest.raises(InputError, match="not 5"):
        FORMAT.codec.check_grid("q_proj", (64, 64), bits=5, group_size=-1)
    layer = random_layer((64, 64), 4, 32, False, torch.float32)
    with pytest.raises(InputError, match="leave the range of torch.float16"):
        FORMAT.codec.encode("q_proj", layer.scale_rows(torch.full((64,), 1e7)), torch.bfloat16)


LEFT_OUT = ("model.layers.0.mlp.down_proj", "model.layers.1.self_attn.o_proj")


def with_linears_left_out(folder: Path) -> tuple[PreTrainedModel, dict[str, UniformLinear]]:
    """A checkpoint whose blocks differ in what is quantized; what should be read from it."""
    model = llama(dtype=torch.float16)
    layers = random_layers(model, 4, 32, True, torch.float16)
    for name in LEFT_OUT:
        del layers[name]
    FORMAT.write(folder, open_source(model), layers)
    return quantized_in_memory(model, layers), layers


def test_linears_left_out_are_told_to_every_reader(tmp_path: Path) -> None:
    expected, layers = with_linears_left_out(tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert config["modules_in_block_to_quantize"] == [list(layers)]
    patterns = [pattern.removeprefix("-:") for pattern in config["dynamic"]]
    names = [*layers, *LEFT_OUT, "lm_head"]
    skipped = {name for name in names if any(re.match(p, name) for p in patterns)}
    assert skipped == set(LEFT_OUT)
    assert_same_model(load_model(tmp_path / "out"), expected)


def test_version_1_is_not_misread(tmp_path: Path) -> None:
    model = llama()
    layers = random_layers(model, 4, 32, True, torch.float16)
    FORMAT.write(tmp_path / "out", open_source(model), layers)
    file = tmp_path / "out" / "config.json"
    file.write_text(file.read_text().replace('"gptq_v2"', '"gptq"'))
    with pytest.raises(InputError, match="checkpoint_format 'gptq'"):
        load_model(tmp_path / "out")


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group_size", [-1, 32])
def test_gptqmodel_reads_what_was_written(
    tmp_path: Path, bits: int, symmetric: bool, group_size: int
) -> None:
    pytest.importorskip("gptqmodel")
    pytest.importorskip("optimum")
    model = qwen2(torch.float16)
    layers = random_layers(model, bits, group_size, symmetric, torch.float16)
    FORMAT.write(tmp_path / "out", open_source(model), layers)
    # The plain torch kernel: the default would first compile C++ for this machine.
    loaded = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out",
        dtype=torch.float16,
        quantization_config=GPTQConfig(bits=bits, backend="gptq_torch"),
    )
    for name, layer in layers.items():
        weight = loaded.get_submodule(name).dequantize_weight().T
        assert torch.equal(weight, layer.dequantize().half()), name
    expected = quantized_in_memory(model, layers)
    assert_close_logits(loaded, expected)


@pytest.mark.parametrize("reader", ["transformers", "gptqmodel"])
def test_readers_leave_unquantized_linears_alone(tmp_path: Path, reader: str) -> None:
    gptqmodel = pytest.importorskip("gptqmodel")
    pytest.importorskip("optimum")
    expected, _ = with_linears_left_out(tmp_path / "out")
    if reader == "transformers":
        loaded = AutoModelForCausalLM.from_pretrained(
            tmp_path / "out",
            dtype=torch.float16,
            quantization_config=GPTQConfig(bits=4, backend="gptq_torch"),
        )
    else:
        tiny_tokenizer().save_pretrained(tmp_path / "out")  # it asks for one
        loaded = gptqmodel.GPTQModel.load(
            str(tmp_path / "out"), device="cpu", dtype=torch.float16, backend="gptq_torch"
        ).model
    for name in LEFT_OUT:
        weight = loaded.get_submodule(name).weight
        assert torch.equal(weight, expected.get_submodule(name).weight), name
    assert_close_logits(loaded, expected)


def assert_close_logits(loaded: PreTrainedModel, expected: PreTrainedModel) -> None:
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        logits, exact = loaded(PROMPT).logits.float(), expected(PROMPT).logits.float()
    # The same float16 weights, but sums in another order; 1 eps was seen.
    tolerance = 4 * torch.finfo(torch.float16).eps * exact.abs().max().item()
    assert (logits - exact).abs().max().item() <= tolerance
