"""A linear layer that computes from packed weights."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from q2n.formats.native import file_dtype, file_shape, rebuild
from q2n.formats.stored import StoredLayer
from q2n.layers.quantized import QuantizedLinear


class PackedLinear(nn.Module):
    """Takes the place of an `nn.Linear`. Its parameters are the tensors of the native layout,
    under their names there; the dense weight exists during a call and no longer.

    They are parameters, not buffers, so that `device_map` can leave them on the disk.
    """

    def __init__(self, stored: StoredLayer, bias: nn.Parameter | None):
        """On the meta device, to be loaded into."""
        super().__init__()
        self.stored = stored
        self.out_features, self.in_features = stored.shape
        for part, tensor in stored.tensors.items():
            empty = torch.empty(file_shape(tensor), dtype=file_dtype(tensor), device="meta")
            self.register_parameter(part, nn.Parameter(empty, requires_grad=False))
        self.bias = bias

    def quantized(self) -> QuantizedLinear:
        """The layer, its small whole numbers unpacked."""
        return rebuild(self.stored, {part: getattr(self, part) for part in self.stored.tensors})

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        """`x W^T + b`, W dequantized in float32 and rounded once to the dtype of `x`."""
        return functional.linear(x, self.quantized().dequantize().to(x.dtype), self.bias)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, kind={self.stored.kind}"
