"""Native checkpoints, read by transformers and by our own reader.

Everything is compared bit for bit: the layout stores what a layer is made of, and a packed layer
computes with the same dequantized weight, rounded to the model's dtype once, as a dense one.
"""

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import pytest
import torch
from formats.native_folders import FORMAT, quantization_config, written
from formats.tiny_models import (
    PROMPT,
    in_shards,
    llama,
    quantized_in_memory,
    qwen2,
    random_layer,
    random_layers,
)
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from q2n.formats import FORMATS
from q2n.formats.load import load_model
from q2n.formats.packed_linear import PackedLinear
from q2n.layers import REPRESENTATIONS
from q2n.layers.quantized import QuantizedLinear
from q2n.models.source import open_source

TOKENS = torch.arange(24).reshape(2, 12)


def logits(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        return model(TOKENS).logits


def greedy(model: PreTrainedModel) -> list[int]:
    return model.generate(PROMPT, max_new_tokens=8, do_sample=False, pad_token_id=0)[0].tolist()


def packed_linears(model: PreTrainedModel) -> dict[str, PackedLinear]:
    return {name: x for name, x in model.named_modules() if isinstance(x, PackedLinear)}


def assert_reads_back(
    out: Path, model: PreTrainedModel, layers: Mapping[str, QuantizedLinear]
) -> PreTrainedModel:
    """Both readers have our weights, and transformers' model computes what a dense one does."""
    expected = quantized_in_memory(model, layers)
    loaded = AutoModelForCausalLM.from_pretrained(out)
    found = packed_linears(loaded)
    assert found.keys() == layers.keys()
    for name, layer in layers.items():
        assert torch.equal(found[name].quantized().dequantize(), layer.dequantize()), name
    assert torch.equal(logits(loaded), logits(expected))
    dense = load_model(out)
    for name, parameter in expected.named_parameters():
        assert torch.equal(dense.get_parameter(name), parameter), name
    return loaded


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize(("group_size", "symmetric"), [(-1, False), (32, True), (32, False)])
def test_both_readers_have_our_weights(
    tmp_path: Path, bits: int, group_size: int, symmetric: bool
) -> None:
    # 72 and 100 columns: neither whole words nor, with 32, whole groups
    model = llama(hidden=72, inner=100, dtype=torch.bfloat16)
    layers = random_layers(model, bits, group_size, symmetric, torch.bfloat16)
    loaded = assert_reads_back(written(tmp_path / "out", model, layers), model, layers)
    for name, module in packed_linears(loaded).items():
        size = 8 * sum(p.numel() * p.element_size() for p in module.parameters())
        # Each packed tensor (codes, zero points) may pad its last word.
        assert layers[name].stored_bits <= size <= layers[name].stored_bits + 2 * 31
        assert not any(p.requires_grad for p in module.parameters())


def test_biases_tied_embeddings_and_the_same_bytes_again(tmp_path: Path) -> None:
    model = qwen2(torch.bfloat16)
    layers = random_layers(model, 3, 32, False, torch.bfloat16)
    out = written(tmp_path / "out", model, layers)
    loaded = assert_reads_back(out, model, layers)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    loaded.save_pretrained(tmp_path / "again")
    first, again = out / "model.safetensors", tmp_path / "again" / "model.safetensors"
    assert again.read_bytes() == first.read_bytes()
    assert quantization_config(tmp_path / "again") == quantization_config(out)
    assert_reads_back(tmp_path / "again", model, layers)


def test_printed_example_generates_the_dense_model_text(tmp_path: Path) -> None:
    model = llama(tied=True)
    layers = random_layers(model, 2, 32, False, torch.float32)
    FORMATS["dequantized"].write(tmp_path / "dense", open_source(model), layers)
    written(tmp_path / "out", model, layers)
    names: dict[str, Any] = {}
    exec(FORMAT.container.loading_example(tmp_path / "out"), names)
    dense = AutoModelForCausalLM.from_pretrained(tmp_path / "dense")
    assert greedy(names["model"]) == greedy(dense)


@pytest.mark.parametrize("placed", ["auto", "cpu", "disk"])
def test_transformers_places_packed_layers(tmp_path: Path, placed: str) -> None:
    model = llama()
    layers = random_layers(model, 4, 32, False, torch.float32)
    out = written(tmp_path / "out", model, layers, in_shards(FORMAT, 20_000))
    device_map: Any = placed
    if placed == "disk":
        device_map = dict.fromkeys(("model.embed_tokens", "model.norm", "lm_head"), "cpu")
        device_map |= {"model.layers.0": "cpu", "model.layers.1": "disk", "model.rotary_emb": "cpu"}
    loaded = AutoModelForCausalLM.from_pretrained(
        out, device_map=device_map, offload_folder=tmp_path / "offloaded"
    )
    away = {name for name, p in loaded.named_parameters() if p.is_meta}
    assert any("down_proj.codes" in name for name in away) == (placed == "disk")
    assert torch.equal(logits(loaded), logits(quantized_in_memory(model, layers)))


def test_another_dtype_leaves_packed_tensors_unchanged(tmp_path: Path) -> None:
    model = llama()
    layers = random_layers(model, 3, -1, False, torch.float32)
    out = written(tmp_path / "out", model, layers)
    loaded = AutoModelForCausalLM.from_pretrained(out, dtype=torch.bfloat16)
    for name, module in packed_linears(loaded).items():
        assert torch.equal(module.quantized().dequantize(), layers[name].dequantize())
    assert loaded.lm_head.weight.dtype == logits(loaded).dtype == torch.bfloat16


@dataclass(frozen=True, kw_only=True, eq=False)
class Flipped(QuantizedLinear):
    """A layer around another: some columns change sign, and each has a factor."""

    kind: ClassVar[str] = "flipped"

    inner: QuantizedLinear
    flip: Bool[Tensor, " in"]
    factor: Float[Tensor, " in"]

    @property
    def shape(self) -> tuple[int, int]:
        return self.inner.shape

    def dequantize(self) -> Tensor:
        return torch.where(self.flip, -1.0, 1.0) * self.factor.float() * self.inner.dequantize()

    def scale_rows(self, alpha: Tensor) -> Self:
        raise NotImplementedError

    @property
    def stored_bits(self) -> int:
        return self.inner.stored_bits

    def tensors(self) -> dict[str, Tensor]:
        own = {"flip": self.flip, "factor": self.factor}
        return own | {f"inner_{name}": x for name, x in self.inner.tensors().items()}

    @property
    def widths(self) -> dict[str, int]:
        return {"flip": 1} | {f"inner_{name}": b for name, b in self.inner.widths.items()}

    def metadata(self) -> dict[str, Any]:
        return {"inner": {"kind": self.inner.kind, **self.inner.metadata()}}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> Self:
        within = {
            name.removeprefix("inner_"): tensor
            for name, tensor in tensors.items()
            if name.startswith("inner_")
        }
        kind = REPRESENTATIONS[metadata["inner"]["kind"]]
        inner = kind.from_tensors(within, metadata["inner"])
        return cls(inner=inner, flip=tensors["flip"], factor=tensors["factor"])


def flipped(inner: QuantizedLinear, seed: int) -> Flipped:
    generator = torch.Generator().manual_seed(seed)
    columns = inner.shape[1]
    return Flipped(
        inner=inner,
        flip=torch.rand(columns, generator=generator) < 0.5,
        factor=(0.5 + torch.rand(columns, generator=generator)).half(),
    )


def test_layers_within_layers_and_different_kinds(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(REPRESENTATIONS, "flipped", Flipped)
    model = llama(hidden=72, inner=100)
    layers: dict[str, QuantizedLinear] = dict(random_layers(model, 3, -1, False, torch.float32))
    for seed, name in enumerate(list(layers)[::2]):
        layers[name] = flipped(layers[name], seed)
    name = list(layers)[2]
    layers[name] = flipped(flipped(random_layer(layers[name].shape, 5, 32, True, torch.half), 7), 8)
    out = written(tmp_path / "out", model, layers)
    loaded = assert_reads_back(out, model, layers)
    assert packed_linears(loaded)[name].flip.shape == (3,)  # 72 bits
    # Bools are bools again, not bytes: `where` and `&` tell them apart.
    assert packed_linears(loaded)[name].quantized().tensors()["inner_flip"].dtype == torch.bool


def test_layers_that_agree_are_described_once(tmp_path: Path) -> None:
    model = llama()
    layers = random_layers(model, 4, 32, False, torch.float32)
    del layers["model.layers.0.mlp.down_proj"]
    out = written(tmp_path / "out", model, layers)
    config = quantization_config(out)
    groups = config["layer_groups"]
    assert sorted(name for group in groups for name in group["layers"]) == sorted(layers)
    shapes = [tuple(group["shape"]) for group in groups]
    assert len(set(shapes)) == len(shapes) == 4
    assert config["modules_not_converted"] == ["model.layers.0.mlp.down_proj", "lm_head"]
    assert_reads_back(out, model, layers)


@pytest.mark.slow
def test_importing_q2n_registers_without_importing_transformers() -> None:
    program = (
        "import sys, q2n, q2n.errors\n"
        "assert not {'torch', 'transformers', 'numba'} & sys.modules.keys()\n"
        "from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING\n"
        "assert 'numba' not in sys.modules\n"  # with it vLLM 0.32 does not start on a CPU
        "print(AUTO_QUANTIZER_MAPPING['q2n'].__name__)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.stdout == "NativeQuantizer\n", done.stderr
