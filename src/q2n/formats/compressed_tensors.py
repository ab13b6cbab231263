"""compressed-tensors, `pack-quantized`: what vLLM and transformers read.

For a weight [N, K] with G groups of inputs and b bits:

    weight_packed      int32 [N, ceil(K b / 32)]   codes, packed along K
    weight_scale       [N, G], model dtype (float16 in a float32 model)
    weight_zero_point  int32 [ceil(N b / 32), G]   asymmetric only, packed along N
    weight_shape       int64 [2]

The library thinks in signed codes and stores them with 2^(b-1) added: our unsigned codes
and zero points are what it stores. Layout as in compressed-tensors 0.18 and later; older
readers put 3-bit fields elsewhere.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from q2n.errors import InputError
from q2n.formats.hf_entry import modules_of
from q2n.formats.packing import pack, unpack
from q2n.formats.stored import StoredLayer
from q2n.formats.uniform import (
    Scheme,
    UniformCodec,
    UniformEntry,
    stored_scale,
)
from q2n.layers.quantized import QuantizedLinear
from q2n.linalg.groups import by_column

LAYOUT_VERSION = "0.20.0"
"""The compressed-tensors release against which the layout is tested; written into the file."""


class CompressedTensors(UniformCodec):
    """Codes as one bitstream per row."""

    name = "compressed-tensors"
    parts = ("weight_packed", "weight_scale", "weight_zero_point", "weight_shape")

    def check_grid(self, name: str, shape: tuple[int, int], *, bits: int, group_size: int) -> None:
        if not 2 <= bits <= 8:
            raise InputError(f"{self.name} holds 2 to 8 bits, not {bits} ({name})")
        if group_size > 0 and shape[1] % group_size:
            raise InputError(
                f"{self.name} has no short last group: {name} has {shape[1]} inputs, which groups "
                f"of {group_size} do not divide; choose a divisor, or -1 for one group per row"
            )

    def encode(
        self, name: str, layer: QuantizedLinear, dtype: torch.dtype
    ) -> dict[str, Shaped[Tensor, "..."]]:
        uniform = self.uniform(name, layer)
        stored = {
            "weight_packed": pack(uniform.codes, uniform.bits),
            "weight_scale": stored_scale(name, uniform.scale, self.scale_dtype(dtype)),
            "weight_shape": torch.tensor(uniform.shape, dtype=torch.int64),
        }
        if not uniform.symmetric:
            zero = pack(uniform.zero.T.contiguous(), uniform.bits)
            stored["weight_zero_point"] = zero.T.contiguous()
        return stored

    def decode(
        self, name: str, parts: Mapping[str, Shaped[Tensor, "..."]], description: Scheme
    ) -> Float[Tensor, "out in"]:
        bits = description.bits
        rows, columns = parts["weight_shape"].tolist()
        codes = unpack(parts["weight_packed"], bits, columns)
        scale = parts["weight_scale"].float()
        zero = torch.full_like(scale, 2 ** (bits - 1))
        if not description.symmetric:
            packed = parts["weight_zero_point"].T.contiguous()
            zero = unpack(packed, bits, rows).T.float()
        group_size = columns // scale.shape[1]
        centred = codes.float() - by_column(zero, group_size, columns)
        return by_column(scale, group_size, columns) * centred


class CompressedTensorsEntry(UniformEntry):
    """One group of layers with one scheme."""

    codec = CompressedTensors
    quant_method = "compressed-tensors"
    merges_parts = False  # transformers 5.23 takes all parts for packed and finds none

    def quantization_config(
        self,
        layers: Mapping[str, StoredLayer],
        unquantized: Mapping[str, str],
        copied: Sequence[str] = (),
    ) -> dict[str, Any]:
        scheme, names = self.common_scheme(layers), [*unquantized, *unquantized.values()]
        weights: dict[str, Any] = {
            "num_bits": scheme.bits,
            "type": "int",
            "symmetric": scheme.symmetric,
            "dynamic": False,
            "strategy": "channel",
        }
        if scheme.group_size > 0:
            weights |= {"strategy": "group", "group_size": scheme.group_size}
        group = {
            "targets": ["Linear"],
            "format": "pack-quantized",
            "weights": weights,
            "input_activations": None,
            "output_activations": None,
        }
        return {
            "quant_method": self.quant_method,
            "version": LAYOUT_VERSION,
            "format": "pack-quantized",
            "quantization_status": "compressed",
            "config_groups": {"group_0": group},
            "ignore": list(dict.fromkeys([*names, *modules_of(copied)])),
        }

    def described_scheme(self, config: Mapping[str, Any]) -> Scheme:
        groups = list(config.get("config_groups", {}).values())
        if config.get("format") != "pack-quantized" or len(groups) != 1:
            raise InputError(
                "this compressed-tensors checkpoint is not one pack-quantized group of layers "
                f"(format {config.get('format')!r}, {len(groups)} groups); load it with "
                "transformers"
            )
        weights = groups[0]["weights"]
        return Scheme(
            bits=weights["num_bits"],
            group_size=weights.get("group_size") or -1,
            symmetric=weights["symmetric"],
        )

    def loading_example(self, directory: Path) -> str:
        return (
            "# pip install transformers compressed-tensors\n"
            "from transformers import AutoModelForCausalLM, CompressedTensorsConfig\n"
            "\n"
            "model = AutoModelForCausalLM.from_pretrained(\n"
            f"    {str(directory)!r},\n"
            "    quantization_config=CompressedTensorsConfig(dequantize=True),\n"
            ")\n"
        )
