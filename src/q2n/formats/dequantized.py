"""A plain checkpoint: dense weights on the quantized grid, in the model's dtype.

It saves no memory, but everything loads it with nothing installed. The product
scale * (code - zero) is rounded once to the dtype; that is the only difference from the
quantized layer.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from q2n.errors import InputError
from q2n.formats.codec import Codec
from q2n.formats.hf_entry import FolderEntry
from q2n.formats.stored import StoredLayer
from q2n.layers.quantized import QuantizedLinear
from q2n.linalg.finite import all_finite


class Dequantized(Codec):
    """Any representation, written as an ordinary weight."""

    name = "dequantized"
    holds_mixed = True

    def least_bits(self, model_dtype: torch.dtype) -> float:
        return 8.0 * model_dtype.itemsize

    def encode(
        self, name: str, layer: QuantizedLinear, dtype: torch.dtype
    ) -> dict[str, Float[Tensor, "out in"]]:
        weight = layer.dequantize().to(dtype)
        if not all_finite(weight):
            raise InputError(f"{name}: a quantized weight overflows {dtype}; use a wider --dtype")
        return {"weight": weight}


class PlainEntry(FolderEntry):
    """No entry: config.json is that of any model."""

    single_experts = "as files"

    def quantization_config(
        self,
        layers: Mapping[str, StoredLayer],
        modules: Mapping[str, str],
        copied: Sequence[str] = (),
    ) -> None:
        return None

    def loading_example(self, directory: Path) -> str:
        return (
            "from transformers import AutoModelForCausalLM\n"
            "\n"
            f"model = AutoModelForCausalLM.from_pretrained({str(directory)!r})\n"
        )
