"""compressed-tensors, `int-quantized`: weights of 8 bits beside inputs of 8 bits (W8A8).

For a weight [N, K]:

    weight        int8 [N, K]   codes, 0 in the middle
    weight_scale  [N, 1], model dtype (float16 in a float32 model)

Readers round the inputs (compressed_tensors_inputs.py) and multiply whole numbers. Weights of 4
bits beside such inputs are `pack-quantized`, as without them.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from q2n.errors import InputError
from q2n.formats.compressed_tensors import CompressedTensors, CompressedTensorsEntry
from q2n.formats.compressed_tensors_inputs import require_inputs
from q2n.formats.format import Format
from q2n.formats.hf_folder import HFFolder
from q2n.formats.uniform import Scheme, UniformCodec, stored_scale
from q2n.grids.per_token import TokenGrid
from q2n.layers.quantized import QuantizedLinear, StorageSpec
from q2n.layers.uniform import UniformStorage
from q2n.linalg.finite import all_finite

MIDDLE = 128


class IntQuantized(UniformCodec):
    """A byte a weight, one scale a row."""

    name = CompressedTensors.name
    parts = ("weight_scale", "weight")

    def check_grid(self, name: str, shape: tuple[int, int], *, bits: int, group_size: int) -> None:
        if bits != 8 or group_size not in (-1, shape[1]):
            raise InputError(
                f"{self.name} with rounded inputs holds 8 bits with one scale a row, not {bits} "
                f"bits in groups of {group_size} ({name}); use --format native"
            )

    def encode(
        self, name: str, layer: QuantizedLinear, dtype: torch.dtype
    ) -> dict[str, Shaped[Tensor, "..."]]:
        uniform = self.uniform(name, layer)
        if not uniform.symmetric:
            raise InputError(f"{self.name} with rounded inputs holds symmetric grids ({name})")
        return {
            "weight": (uniform.codes.to(torch.int16) - MIDDLE).to(torch.int8),
            "weight_scale": stored_scale(name, uniform.scale, self.scale_dtype(dtype)),
        }

    def decode(
        self, name: str, parts: Mapping[str, Shaped[Tensor, "..."]], description: Scheme
    ) -> Float[Tensor, "out in"]:
        codes, scale = parts.get("weight"), parts["weight_scale"]
        if codes is None or codes.dtype != torch.int8 or scale.shape != (len(codes), 1):
            raise InputError(
                f"{name} has no int8 weight with one scale a row; fetch the checkpoint again"
            )
        if not (scale.is_floating_point() and all_finite(scale)):
            raise InputError(f"tensor {name}.weight_scale has NaN or Inf; fetch it again")
        return codes.float() * scale.float()


class IntQuantizedEntry(CompressedTensorsEntry):
    """One group of such layers."""

    codec = IntQuantized
    layout = "int-quantized"

    def describes(self, quantization: Mapping[str, Any]) -> bool:
        return super().describes(quantization) and quantization.get("format") == self.layout


def rounding_inputs(format: Format, storage: StorageSpec, grid: TokenGrid) -> Format:
    """compressed-tensors for linears that round their inputs.

    Raises:
        InputError: its readers do not run the two together.
    """
    assert isinstance(storage, UniformStorage)  # its codec holds no other
    require_inputs(storage, grid)
    assert isinstance(format.container, HFFolder)
    whole = storage.bits == 8
    entry = (IntQuantizedEntry if whole else CompressedTensorsEntry)(rounds_inputs=True)
    return replace(
        format,
        codec=IntQuantized() if whole else format.codec,
        container=replace(format.container, entry=entry),
    )
