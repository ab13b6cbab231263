"""GPTQ, `checkpoint_format: gptq_v2`: the oldest and most widely read packed layout.

For a weight [N, K] with groups of g inputs, G = ceil(K / g), and b bits:

    qweight  int32 [K b / 32, N]   codes, packed along K
    qzeros   int32 [G, N b / 32]   zero points, packed along N
    scales   float16 [G, N]
    g_idx    int32 [K]             group of each input: here always k // g

Version 1 of the layout stores zero - 1, which a zero of 0 wraps round; version 2 stores the
zero itself and is what is written. Nothing is padded: whole words or a refusal.

Readers take every linear for quantized unless config.json says otherwise, and look in different
places: gptqmodel for patterns of those that are not (`dynamic`), transformers by way of optimum for
the names of those that are (`modules_in_block_to_quantize`), vLLM for both. They match names in the
model; where the files have others, vLLM may know those: both are written.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from transformers import PreTrainedModel

from q2n.errors import InputError
from q2n.formats.hf_entry import modules_of, others
from q2n.formats.model_checks import require_plain_initialization, require_text_alone
from q2n.formats.packing import WORD, pack, unpack, word_count
from q2n.formats.stored import StoredLayer
from q2n.formats.uniform import Scheme, UniformCodec, UniformEntry, require_tensors, stored_scale
from q2n.layers.quantized import QuantizedLinear

BITS = (2, 3, 4, 8)
GROUP_SIZES = (16, 32, 64, 128, 256, 512, 1024)
"""Those for which gptqmodel 7.7 has a kernel, besides one group per row."""


class GPTQv2(UniformCodec):
    """The layout of GPTQ tools."""

    name = "gptq_v2"
    parts = ("qweight", "qzeros", "scales", "g_idx")

    def scale_dtype(self, model_dtype: torch.dtype) -> torch.dtype:
        return torch.float16

    def check_grid(self, name: str, shape: tuple[int, int], *, bits: int, group_size: int) -> None:
        if bits not in BITS:
            raise InputError(f"{self.name} holds {BITS} bits, not {bits} ({name})")
        if group_size not in (-1, shape[1], *GROUP_SIZES):
            raise InputError(
                f"{self.name}: no reader takes groups of {group_size} ({name}); choose one of "
                f"{GROUP_SIZES}, or -1 for one group per row"
            )
        for size, side in zip(shape, ("outputs", "inputs"), strict=True):
            if size * bits % WORD:
                raise InputError(
                    f"{self.name} packs whole 32-bit words: {name} has {size} {side}, and "
                    f"{size} x {bits} bits is not a multiple of {WORD}; use compressed-tensors"
                )

    def encode(
        self, name: str, layer: QuantizedLinear, dtype: torch.dtype
    ) -> dict[str, Shaped[Tensor, "..."]]:
        uniform = self.uniform(name, layer)
        scale = stored_scale(name, uniform.scale, self.scale_dtype(dtype))
        columns = torch.arange(uniform.shape[1], dtype=torch.int32)
        return {
            "qweight": pack(uniform.codes, uniform.bits).T.contiguous(),
            "qzeros": pack(uniform.zero.T.contiguous(), uniform.bits),
            "scales": scale.T.contiguous(),
            "g_idx": columns // uniform.group_size,
        }

    def decode(
        self, name: str, parts: Mapping[str, Shaped[Tensor, "..."]], description: Scheme
    ) -> Float[Tensor, "out in"]:
        bits = description.bits
        require_tensors(name, parts, _expected(parts, description))
        scale, group_of = parts["scales"].float(), parts["g_idx"].long()
        if int(group_of.min()) < 0 or int(group_of.max()) >= len(scale):
            raise InputError(f"tensor {name}.g_idx names groups that are not there; fetch it again")
        codes = unpack(parts["qweight"].T.contiguous(), bits, group_of.numel())
        zero = unpack(parts["qzeros"], bits, scale.shape[1])
        return scale[group_of].T * (codes.float() - zero[group_of].T.float())


def _expected(
    parts: Mapping[str, Shaped[Tensor, "..."]], scheme: Scheme
) -> dict[str, tuple[tuple[int, ...], bool]]:
    """The shapes that follow from how many inputs and outputs there are."""
    columns = parts["g_idx"].numel() if "g_idx" in parts else 0
    rows = parts["qweight"].shape[-1] if parts["qweight"].ndim else 0
    groups = scheme.groups(columns)
    return {
        "g_idx": ((max(columns, 1),), False),
        "qweight": ((word_count(columns, scheme.bits), rows), False),
        "qzeros": ((groups, word_count(rows, scheme.bits)), False),
        "scales": ((groups, rows), True),
    }


class GPTQEntry(UniformEntry):
    """One scheme, and the decoder linears that are not quantized."""

    codec = GPTQv2
    quant_method = "gptq"
    config_copy = "quantize_config.json"

    def check_model(self, model: nn.Module) -> None:
        assert isinstance(model, PreTrainedModel)
        require_text_alone(self.codec.name, model)
        require_plain_initialization(self.codec.name, model)

    def quantization_config(
        self,
        layers: Mapping[str, StoredLayer],
        modules: Mapping[str, str],
        copied: Sequence[str] = (),
    ) -> dict[str, Any]:
        scheme, left_out = self.common_scheme(layers), _left_out(others(layers, modules), copied)
        return {
            "quant_method": self.quant_method,
            "checkpoint_format": self.codec.name,
            "bits": scheme.bits,
            "group_size": scheme.group_size,
            "sym": scheme.symmetric,
            "desc_act": False,
            "lm_head": False,
            "pack_dtype": "int32",
            "meta": {"quantizer": ["q2n"]},
            **_block_list(layers),
            **(_mixture(layers, left_out) if left_out else {}),
        }

    def described_scheme(self, config: Mapping[str, Any]) -> Scheme:
        version = config.get("checkpoint_format")
        if version != self.codec.name:
            raise InputError(
                f"checkpoint_format {version!r} is not read here, only {self.codec.name!r}; "
                "load it with gptqmodel"
            )
        return Scheme(bits=config["bits"], group_size=config["group_size"], symmetric=config["sym"])

    def loading_example(self, directory: Path) -> str:
        return (
            "# pip install transformers optimum gptqmodel\n"
            "import torch\n"
            "from transformers import AutoModelForCausalLM\n"
            "\n"
            "model = AutoModelForCausalLM.from_pretrained(\n"
            f"    {str(directory)!r}, dtype=torch.float16\n"
            ")\n"
        )


def _left_out(unquantized: Mapping[str, str], copied: Iterable[str]) -> list[str]:
    """The linears that a reader could take for quantized ones, by their names in the model and in
    the files: all but the output head, at the top of the model, which has an entry of its own."""
    names = dict.fromkeys([*unquantized, *unquantized.values(), *modules_of(copied)])
    return [name for name in names if "." in name]


def _mixture(quantized: Iterable[str], left_out: Iterable[str]) -> dict[str, Any]:
    """The entries that tell readers which linears are not quantized."""
    return {
        "dynamic": {f"-:^{re.escape(name)}$": {} for name in left_out},
        "modules_in_block_to_quantize": [list(quantized)],
    }


def _block_list(quantized: Iterable[str]) -> dict[str, str]:
    """The entry that says in which list of blocks the quantized linears lie: optimum guesses it,
    and knows that of a plain decoder."""
    lists = {re.split(r"\.\d+\.", name)[0] for name in quantized}
    known = lists == {"model.layers"} or len(lists) > 1
    return {} if known else {"block_name_to_quantize": lists.pop()}
