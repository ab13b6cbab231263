"""One of vLLM's linears, multiplied from packed weights.

vLLM hands the tensors of a checkpoint over one by one, each with the fused linear that it belongs
to. As soon as a linear of the checkpoint is complete it becomes a packed weight, of which a
tensor-parallel rank keeps its share (share.py).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from vllm.config import get_current_vllm_config
from vllm.forward_context import get_forward_context
from vllm.model_executor.layers.linear import LinearMethodBase

from q2n.errors import InputError
from q2n.formats.native import file_dtype
from q2n.formats.packed_weight import PackedWeight
from q2n.formats.stored import StoredLayer
from q2n.formats.vllm.share import Share, dense_share, packed_share, require_divisible

_DENSE = "weight"
"""The tensor of a linear that is not quantized."""
_OUTPUTS = ("q", "k", "v")
"""How vLLM calls the three linears of attention; others have numbers."""


class NativeLinear(LinearMethodBase):
    """Of one linear of vLLM, made of one linear of the checkpoint or several."""

    out_features: int
    dtype: torch.dtype

    def __init__(self, prefix: str, linears: Mapping[str, StoredLayer | None]):
        """`linears`: in the order of their outputs; None: not quantized."""
        self.prefix, self.linears = prefix, dict(linears)
        self.shares: dict[str, Share] = {}
        self.arrived: dict[str, dict[str, Shaped[Tensor, ...]]] = {name: {} for name in linears}
        self.weights: dict[str, list[PackedWeight]] = {}
        self.packed: list[PackedWeight] = []
        """All weights, in the order of their outputs, once they are there."""

    def create_weights(
        self,
        layer: nn.Module,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        input_size: int,
        output_size: int,
        params_dtype: torch.dtype,
        **extra_weight_attrs: Any,
    ) -> None:
        """As vLLM calls it: an empty parameter for each name of a tensor, whose loader takes what
        comes under that name."""
        ranks: dict[str, Any] = {"rank": layer.tp_rank, "ranks": layer.tp_size}
        outputs = self._outputs(output_partition_sizes, ranks["ranks"])
        self.out_features, self.dtype = sum(map(sum, outputs)), params_dtype
        for name, own in zip(self.linears, outputs, strict=True):
            self.shares[name] = Share(outputs=own, inputs=input_size_per_partition, **ranks)
        for part, dtype in self._dtypes().items():
            empty = nn.Parameter(torch.empty(0, dtype=dtype), requires_grad=False)
            empty.weight_loader = self._loader(part)  # type: ignore[attr-defined] # vLLM's way
            layer.register_parameter(part, empty)
        get_current_vllm_config().compilation_config.static_forward_context[self.prefix] = layer

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        """Raises:
        InputError: the checkpoint lacks a tensor.
        """
        if self.packed:  # a tied head asks too
            return
        for name, stored in self.linears.items():
            if name not in self.weights:
                missing = min(_parts(stored).keys() - self.arrived[name].keys())
                raise InputError(f"tensor {name}.{missing} is missing; fetch the checkpoint again")
        self.packed = [weight for name in self.linears for weight in self.weights.pop(name)]
        for part in self._dtypes():
            delattr(layer, part)

    def apply(
        self,
        layer: nn.Module,
        x: Float[Tensor, "*tokens in"],
        bias: Float[Tensor, " out"] | None = None,
    ) -> Float[Tensor, "*tokens out"]:
        """`x W^T + b`."""
        if torch.compiler.is_compiling():
            y = _operation(x, self.prefix, self.out_features)
        else:
            y = self.multiply(x)
        return y if bias is None else y + bias

    def multiply(self, x: Float[Tensor, "*tokens in"]) -> Float[Tensor, "*tokens out"]:
        """`x W^T`."""
        tokens = x.reshape(-1, x.shape[-1])
        results = [weight.product(tokens, None) for weight in self.packed]
        result = results[0] if len(results) == 1 else torch.cat(results, 1)
        return result.view(*x.shape[:-1], self.out_features)

    def _outputs(self, sizes: Sequence[int], ranks: int) -> list[Sequence[int]]:
        """The rows of one of the ranks by linear of the checkpoint.

        Raises:
            InputError: ranks cannot divide one of them, or the checkpoint has others.
        """
        for name, stored in self.linears.items():
            if stored is not None:
                require_divisible(name, stored, ranks)
        if len(self.linears) == 1:
            return [sizes]
        if len(self.linears) == len(sizes):
            return [[size] for size in sizes]
        raise InputError(
            f"vLLM divides {self.prefix} into {len(sizes)} outputs, the checkpoint into "
            f"{len(self.linears)} ({', '.join(self.linears)}); use transformers"
        )

    def _dtypes(self) -> dict[str, torch.dtype]:
        """Of the tensors of all linears, by their names under the module."""
        dtypes: dict[str, torch.dtype | None] = {}
        for stored in self.linears.values():
            dtypes |= _parts(stored)
        return {part: dtype or self.dtype for part, dtype in dtypes.items()}

    def _loader(self, part: str) -> Any:
        names = list(self.linears)

        def load(
            parameter: nn.Parameter,
            tensor: Shaped[Tensor, "..."],
            shard: str | int | None = None,
        ) -> None:
            place = _OUTPUTS.index(shard) if isinstance(shard, str) else shard or 0
            self._take(names[place], part, tensor.to(parameter.device, copy=True))

        return load

    def _take(self, name: str, part: str, tensor: Shaped[Tensor, "..."]) -> None:
        """Keep a tensor until its linear is complete."""
        arrived, stored, share = self.arrived[name], self.linears[name], self.shares[name]
        arrived[part] = tensor
        if arrived.keys() < _parts(stored).keys():
            return
        if stored is None:
            self.weights[name] = dense_share(tensor.to(self.dtype), share)
        else:
            self.weights[name] = packed_share(name, stored, arrived, share, self.dtype)
        self.arrived[name] = {}


def _parts(stored: StoredLayer | None) -> dict[str, torch.dtype | None]:
    """Tensors of a linear with their dtypes; None: any."""
    if stored is None:
        return {_DENSE: None}
    return {part: file_dtype(tensor) for part, tensor in stored.tensors.items()}


@torch.library.custom_op("q2n::vllm_linear", mutates_args=())
def _operation(x: Tensor, prefix: str, out_features: int) -> Tensor:
    """What `torch.compile` sees of a linear: its name, which stays true in a cache on the disk."""
    return get_forward_context().no_compile_layers[prefix].quant_method.multiply(x)


@_operation.register_fake
def _(x: Tensor, prefix: str, out_features: int) -> Tensor:
    return x.new_empty(*x.shape[:-1], out_features)
