"""A plain checkpoint: dense weights on the quantized grid, in the model's dtype.

It saves no memory, but everything loads it with nothing installed. The product
scale * (code - zero) is rounded once to the dtype; that is the only difference from the
quantized layer.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from q2n.errors import InputError
from q2n.formats.format import Format, StoredLayer
from q2n.layers.quantized import QuantizedLinear


class Dequantized(Format):
    """Any representation, written as ordinary weights."""

    name = "dequantized"

    def scale_dtype(self, model_dtype: torch.dtype) -> torch.dtype:
        return model_dtype

    def tensors(self, name: str, layer: QuantizedLinear, dtype: torch.dtype) -> dict[str, Tensor]:
        weight = layer.dequantize().to(dtype)
        if not torch.isfinite(weight).all():
            raise InputError(f"{name}: a quantized weight overflows {dtype}; use a wider --dtype")
        return {f"{name}.weight": weight}

    def quantization_config(
        self, layers: Mapping[str, StoredLayer], unquantized: Sequence[str]
    ) -> dict[str, Any] | None:
        return None

    def loading_example(self, directory: Path) -> str:
        return (
            "from transformers import AutoModelForCausalLM\n"
            "\n"
            f"model = AutoModelForCausalLM.from_pretrained({str(directory)!r})\n"
        )
