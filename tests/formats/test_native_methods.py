"""Every method's checkpoint from the settings to the running model, and back to the same bytes."""

import json
from pathlib import Path

import pytest
import torch
from tiny import save_tiny, tiny_text
from transformers import AutoModelForCausalLM, PreTrainedModel

import q2n
from q2n.config.presets import METHOD_PRESETS
from q2n.formats.load import load_model
from q2n.formats.packed_linear import PackedLinear
from q2n.methods import METHODS

pytestmark = pytest.mark.slow


PROMPT = torch.tensor([[5, 17, 40, 3, 9]])
LONG = torch.arange(12).unsqueeze(0)
"""More tokens than the kernels for a few: the dense weight is multiplied, panel by panel."""
IN_PARTS = ("rotated", "outliers", "salient_columns")
"""Representations that are multiplied in parts: sums are rounded otherwise."""
OPTIONS = {
    "quip": {"bits": 2},
    "pbllm": {"low_fraction": 0.8},
    "leanquant": {"bits": 3},
    "owq": {"bits": 3, "target_rank": 2},
    "quarot": {"kv_bits": 4},
    "spinquant": {"kv_bits": 4, "rotate_steps": 2},
    "exl3": {"bits": 5, "only": ["*down_proj"]},
    "omniquant": {"bits": 3, "clip_epochs": 1},
    "ptq161": {"fit_epochs": 1},
}
OWN_BASIS = ("omniquant", "ptq161")
"""Methods that are fitted on the weights as they are."""
CASES = [
    (method, incoherence)
    for method in (*METHODS, *METHOD_PRESETS)
    for incoherence in ("preset", "blocks")
    if incoherence == "preset" or method not in OWN_BASIS
]


def greedy(model: PreTrainedModel) -> list[int]:
    return model.generate(PROMPT, max_new_tokens=8, do_sample=False, pad_token_id=0)[0].tolist()


@torch.no_grad()
@pytest.mark.parametrize(("method", "incoherence"), CASES)
def test_saved_method_generates_same_text_and_bytes(tmp_path: Path, method: str, incoherence: str):
    save_tiny(tmp_path / "model", layers=2)
    (tmp_path / "text.txt").write_text(tiny_text())
    done = q2n.quantize(
        tmp_path / "model",
        tmp_path / "out",
        method=method,
        nullspace="off" if method == "rtn" else "paper",
        incoherence=None if incoherence == "preset" else incoherence,
        format="native",
        corpus=str(tmp_path / "text.txt"),
        windows=4,
        length=16,
        **OPTIONS.get(method, {"bits": 3}),
    )
    out = done.directory
    loaded, dense = AutoModelForCausalLM.from_pretrained(out), load_model(out)
    packed = {name: x for name, x in loaded.named_modules() if isinstance(x, PackedLinear)}
    assert packed.keys() == done.record["layers"].keys() and packed
    for name, module in packed.items():
        expected = dense.get_submodule(name).weight
        assert torch.equal(module.quantized().dequantize().to(expected.dtype), expected)
    torch.testing.assert_close(loaded(PROMPT).logits, dense(PROMPT).logits, rtol=1e-4, atol=1e-4)
    assert greedy(loaded) == greedy(dense)
    if all(module.stored.kind not in IN_PARTS for module in packed.values()):
        assert torch.equal(loaded(LONG).logits, dense(LONG).logits)

    for name, layer in done.record["layers"].items():
        module, (rows, columns) = packed[name], layer["shape"]
        held = 8 * sum(x.nbytes for x in (*module.parameters(), *module.buffers()))
        # a seed is in config.json, and the last word of each tensor is padded
        counted = layer["bits_per_weight"] * rows * columns
        assert counted - 64 <= held <= counted + 31 * len(list(module.parameters()))

    loaded.save_pretrained(tmp_path / "again")
    folders = (out, tmp_path / "again")
    first, again = ((folder / "model.safetensors").read_bytes() for folder in folders)
    assert first == again
    first, again = (json.loads((folder / "config.json").read_text()) for folder in folders)
    assert first["quantization_config"] == again["quantization_config"]
    reloaded = AutoModelForCausalLM.from_pretrained(folders[1])
    assert torch.equal(reloaded(PROMPT).logits, loaded(PROMPT).logits)
