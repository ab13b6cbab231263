"""Quantized experts come back through transformers, bit for bit, in every format with them."""

import pytest
import torch
from mixtures import FUSED, MIXTURES, tiny_mixture
from safetensors.torch import load_file
from tiny import tiny_tokenizer
from transformers import AutoModelForCausalLM, CompressedTensorsConfig

import q2n
from q2n.errors import InputError
from q2n.formats.load import load_model
from q2n.formats.packed_linear import PackedLinear
from q2n.models.experts import one_by_one

TOKENS = torch.arange(24).reshape(2, 12) + 3
PACKED = [name for name in MIXTURES if name not in FUSED]


def quantized(folder, architecture, format, **settings):
    """A tiny mixture in bfloat16, rounded."""
    tiny_mixture(architecture).bfloat16().save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    given = {"method": "rtn", "bits": 4, "group_size": 32, "symmetric": True, **settings}
    q2n.quantize(folder / "model", folder / "out", format=format, **given)
    return folder / "out"


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=TOKENS, use_cache=False).logits.float()


def same(theirs, ours):
    """Every weight, experts taken apart, is the same."""
    left, right = one_by_one(theirs).state_dict(), ours.state_dict()
    assert left.keys() == right.keys()
    return all(torch.equal(left[name], right[name]) for name in right)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", PACKED)
def test_compressed_tensors_loads_as_it_was_written(tmp_path, architecture):
    out = quantized(tmp_path, architecture, "compressed-tensors")
    dense = CompressedTensorsConfig(dequantize=True)
    theirs = AutoModelForCausalLM.from_pretrained(out, quantization_config=dense)
    assert same(theirs, load_model(out))


@pytest.mark.slow
@pytest.mark.parametrize("architecture", MIXTURES)
def test_a_plain_checkpoint_loads_as_it_was_written(tmp_path, architecture):
    out = quantized(tmp_path, architecture, "dequantized")
    stored, written = (load_file(x / "model.safetensors") for x in (tmp_path / "model", out))
    assert stored.keys() == written.keys()
    assert same(AutoModelForCausalLM.from_pretrained(out), load_model(out))


@pytest.mark.slow
@pytest.mark.parametrize("architecture", MIXTURES)
def test_packed_experts_compute_as_dense_ones(tmp_path, architecture):
    out = quantized(tmp_path, architecture, "native", bits=3)
    packed = AutoModelForCausalLM.from_pretrained(out)
    ours = load_model(out)
    linears = {n: m for n, m in packed.named_modules() if isinstance(m, PackedLinear)}
    assert sum("experts." in name for name in linears) >= 12
    for name, linear in linears.items():
        dense = linear.quantized().dequantize().bfloat16()
        assert torch.equal(dense, ours.get_parameter(f"{name}.weight")), name
    if architecture != "phimoe":  # whose router sends tokens elsewhere for a rounding
        assert (logits(ours) - logits(packed)).norm() < 0.02 * logits(ours).norm()


SOME = ["*experts.1.*", "*experts.2.down_proj"]


@pytest.mark.parametrize("format", ["native", "dequantized"])
def test_some_experts_may_stay_as_they_are(tmp_path, format):
    out = quantized(tmp_path, "mixtral", format, ignore=SOME)
    ours, theirs = load_model(out), AutoModelForCausalLM.from_pretrained(out)
    assert (logits(ours) - logits(theirs)).norm() < 0.02 * logits(ours).norm()


QUICK = ("qwen3_moe",)


@pytest.mark.parametrize("left", ["*experts*", "model.layers.1.*experts*"])
@pytest.mark.parametrize("format", ["native", "compressed-tensors"])
@pytest.mark.parametrize(
    "architecture",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in MIXTURES],
)
def test_whole_mixtures_may_stay_as_they_are(tmp_path, architecture, format, left):
    if format == "compressed-tensors" and architecture in FUSED and left != "*experts*":
        pytest.skip("fused files are refused")
    out = quantized(tmp_path, architecture, format, bits=8, ignore=[left])
    ours = load_model(out)
    theirs, info = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    if architecture != "phimoe":  # whose router sends tokens elsewhere for a rounding
        assert (logits(ours) - logits(theirs)).norm() < 0.02 * logits(ours).norm()


def test_a_split_mixture_is_refused_where_readers_fail(tmp_path):
    with pytest.raises(InputError, match=r"all alike, and .*experts\.1\.gate_proj would stay"):
        quantized(tmp_path, "mixtral", "compressed-tensors", ignore=SOME)


def test_zero_points_are_refused_where_readers_fail(tmp_path):
    with pytest.raises(InputError, match="experts in compressed-tensors with symmetric grids"):
        quantized(tmp_path, "qwen3_moe", "compressed-tensors", symmetric=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("architecture", FUSED)
def test_fused_files_are_refused_for_single_experts(tmp_path, architecture):
    with pytest.raises(InputError, match="keeps its experts fused"):
        quantized(tmp_path, architecture, "compressed-tensors")


@pytest.mark.parametrize("format", ["gptq_v2", "mlx"])
def test_formats_without_experts_say_so(tmp_path, format):
    with pytest.raises(InputError, match="no place for the experts of a mixture"):
        quantized(tmp_path, "qwen3_moe", format)


def test_dense_layers_alone_go_into_any_format(tmp_path):
    out = quantized(tmp_path, "qwen3_moe", "gptq_v2", ignore=["*experts*"])
    assert (out / "model.safetensors").exists()
