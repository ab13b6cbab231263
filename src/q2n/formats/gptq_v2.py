"""GPTQ, `checkpoint_format: gptq_v2`: the oldest and most widely read packed layout.

For a weight [N, K] with groups of g inputs, G = ceil(K / g), and b bits:

    qweight  int32 [K b / 32, N]   codes, packed along K
    qzeros   int32 [G, N b / 32]   zero points, packed along N
    scales   float16 [G, N]
    g_idx    int32 [K]             group of each input: here always k // g

Version 1 of the layout stores zero - 1, which a zero of 0 wraps round; version 2 stores the
zero itself and is what is written. Nothing is padded: whole words or a refusal.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from q2n.errors import InputError
from q2n.formats.format import StoredLayer
from q2n.formats.packing import WORD, pack, unpack
from q2n.formats.uniform import UniformFormat, stored_scale
from q2n.layers.quantized import QuantizedLinear

BITS = (2, 3, 4, 8)
GROUP_SIZES = (16, 32, 64, 128, 256, 512, 1024)
"""Those for which gptqmodel 7.7 has a kernel, besides one group a row."""


class GPTQv2(UniformFormat):
    """The layout of GPTQ tools."""

    name = "gptq_v2"
    quant_method = "gptq"
    parts = ("qweight", "qzeros", "scales", "g_idx")
    config_copy = "quantize_config.json"

    def scale_dtype(self, model_dtype: torch.dtype) -> torch.dtype:
        return torch.float16

    def check_grid(self, name: str, shape: tuple[int, int], *, bits: int, group_size: int) -> None:
        if bits not in BITS:
            raise InputError(f"{self.name} holds {BITS} bits, not {bits} ({name})")
        if group_size not in (-1, shape[1], *GROUP_SIZES):
            raise InputError(
                f"{self.name}: no reader takes groups of {group_size} ({name}); choose one of "
                f"{GROUP_SIZES}, or -1 for one group a row"
            )
        for size, side in zip(shape, ("outputs", "inputs"), strict=True):
            if size * bits % WORD:
                raise InputError(
                    f"{self.name} packs whole 32-bit words: {name} has {size} {side}, and "
                    f"{size} x {bits} bits is not a multiple of {WORD}; use compressed-tensors"
                )

    def tensors(self, name: str, layer: QuantizedLinear, dtype: torch.dtype) -> dict[str, Tensor]:
        affine = self.affine(name, layer)
        scale = stored_scale(name, affine.scale, self.scale_dtype(dtype))
        columns = torch.arange(affine.shape[1], dtype=torch.int32)
        return {
            f"{name}.qweight": pack(affine.codes, affine.bits).T.contiguous(),
            f"{name}.qzeros": pack(affine.zero.T.contiguous(), affine.bits),
            f"{name}.scales": scale.T.contiguous(),
            f"{name}.g_idx": columns // affine.group_size,
        }

    def quantization_config(
        self, layers: Mapping[str, StoredLayer], unquantized: Sequence[str]
    ) -> dict[str, Any]:
        scheme = self.scheme(layers)
        self._require_whole_blocks(layers, unquantized)
        return {
            "quant_method": self.quant_method,
            "checkpoint_format": self.name,
            "bits": scheme.bits,
            "group_size": scheme.group_size,
            "sym": scheme.symmetric,
            "desc_act": False,
            "lm_head": False,
            "pack_dtype": "int32",
            "meta": {"quantizer": ["q2n"]},
        }

    def _require_whole_blocks(
        self, layers: Mapping[str, StoredLayer], unquantized: Sequence[str]
    ) -> None:
        """Readers take every linear inside the decoder blocks for quantized."""
        stacks = {_stack(name) for name in layers}
        left_out = [name for name in unquantized if _stack(name) in stacks]
        if left_out:
            raise InputError(
                f"{self.name} readers expect every linear of a decoder block to be quantized, "
                f"but {left_out[0]} is not; use compressed-tensors"
            )

    def dense(
        self, parts: Mapping[str, Tensor], config: Mapping[str, Any]
    ) -> Float[Tensor, "out in"]:
        version = config.get("checkpoint_format")
        if version != self.name:
            raise InputError(f"checkpoint_format {version!r} is not read here, only {self.name!r}")
        bits = config["bits"]
        scale = parts["scales"].float()
        group_of = parts["g_idx"].long()
        codes = unpack(parts["qweight"].T.contiguous(), bits, group_of.numel())
        zero = unpack(parts["qzeros"], bits, scale.shape[1])
        return scale[group_of].T * (codes.float() - zero[group_of].T.float())

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


def _stack(name: str) -> str:
    """The module list a name lies in: what stands before its first number ('' if none)."""
    parts = name.split(".")
    numbers = [i for i, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[: numbers[0]]) if numbers else ""
