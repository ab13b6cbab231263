"""Models whose q, k and v are one matrix, quantized, written and loaded by transformers."""

from pathlib import Path

import pytest
import torch
from formats.test_recurrent_models import logits, quantize
from tiny import tiny_model, tiny_tokenizer
from torch import nn
from transformers import AutoModelForCausalLM

from q2n.formats.load import load_model

FUSED = {
    "phi3": "qkv_proj",
    "falcon": "query_key_value",
    "mpt": "Wqkv",
    "bloom": "query_key_value",
}


@pytest.mark.parametrize("architecture", FUSED)
def test_fused_projections_load_to_the_bit(architecture: str, tmp_path: Path) -> None:
    tiny_model(architecture, layers=2).save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    for name in ("dequantized", "native", "compressed-tensors"):
        dtype = "float32" if name == "native" else "bfloat16"
        done = quantize(tmp_path, name, format=name, dtype=dtype)
        assert FUSED[architecture] in {x.rpartition(".")[2] for x in done.record["layers"]}
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path / name)
        ours = load_model(tmp_path / name)
        assert torch.equal(logits(theirs), logits(ours))  # compressed ones are dense from here on
        expected = ours.state_dict()
        for module_name, module in theirs.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                assert torch.equal(module.weight, expected[f"{module_name}.weight"]), module_name
