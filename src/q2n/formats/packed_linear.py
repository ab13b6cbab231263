"""A linear layer that computes from packed weights."""

from dataclasses import dataclass
from itertools import count
from typing import Any
from weakref import WeakValueDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from q2n.formats.native import file_dtype, file_shape, rebuild
from q2n.formats.packed_kinds import packed_weight
from q2n.formats.packed_weight import PackedWeight
from q2n.formats.stored import StoredLayer
from q2n.layers.quantized import QuantizedLinear

_FLOATS = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class _Ready:
    """What a layer multiplies with, made at its first call."""

    stamps: tuple[tuple[int, int], ...]
    """Address and version of each parameter that it was made from."""
    weight: PackedWeight | None
    """None: the representation has no kernel."""
    bias: Float[Tensor, " out"] | None
    """In float32."""


class PackedLinear(nn.Module):
    """Takes the place of an `nn.Linear`. Its parameters are the tensors of the native layout,
    under their names there; kernels multiply with them as they are (packed_weight.py).

    They are parameters, not buffers, so that `device_map` can leave them on the disk.
    """

    _ready: _Ready
    _key: int

    def __init__(self, stored: StoredLayer, bias: nn.Parameter | None):
        """On the meta device, to be loaded into."""
        super().__init__()
        self.stored = stored
        self.out_features, self.in_features = stored.shape
        for part, tensor in stored.tensors.items():
            empty = torch.empty(file_shape(tensor), dtype=file_dtype(tensor), device="meta")
            self.register_parameter(part, nn.Parameter(empty, requires_grad=False))
        self.bias = bias
        self._enter()

    def quantized(self) -> QuantizedLinear:
        """The layer, its small whole numbers unpacked."""
        return rebuild(self.stored, {part: getattr(self, part) for part in self.stored.tensors})

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        """`x W^T + b`. For up to 8 tokens sums go over the weights as they are, in float32; for
        more, W is dequantized in panels and rounded once to the dtype of `x`."""
        if torch.compiler.is_compiling() or (x.requires_grad and torch.is_grad_enabled()):
            return _operation(x, self._key, self.out_features)
        return self.multiply(x)

    def multiply(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        """What `forward` gives, without a gradient."""
        ready = self._prepared()
        if ready.weight is None or x.dtype not in _FLOATS or x.is_meta:
            return functional.linear(x, self._dense(x), self.bias)
        result = ready.weight.product(x.reshape(-1, self.in_features), ready.bias)
        return result.view(*x.shape[:-1], self.out_features)

    def multiply_back(self, y: Float[Tensor, "*batch out"]) -> Float[Tensor, "*batch in"]:
        """`y W`: the gradient at x, from that at the outputs."""
        return y @ self._dense(y)

    def _dense(self, like: Tensor) -> Float[Tensor, "out in"]:
        return self.quantized().dequantize().to(like.dtype)

    def _prepared(self) -> _Ready:
        """Made again if a parameter was moved or replaced since."""
        parts = {name: p for name, p in self._parameters.items() if p is not None}
        stamps = tuple(
            (p.data_ptr(), 0 if p.is_inference() else p._version) for p in parts.values()
        )
        if stamps == self._ready.stamps:
            return self._ready
        bias = parts.pop("bias", None)
        ready = _Ready(
            stamps,
            packed_weight(self.stored, {name: p.detach() for name, p in parts.items()}),
            None if bias is None else bias.detach().float().contiguous(),
        )
        if not self._leaves_memory():
            self._ready = ready
        return ready

    def _leaves_memory(self) -> bool:
        """Whether accelerate keeps the parameters on the disk between calls."""
        hook = self.__dict__.get("_hf_hook")
        return any(getattr(one, "offload", False) for one in getattr(hook, "hooks", (hook,)))

    def _enter(self) -> None:
        self._ready = _Ready((), None, None)
        self._key = next(_numbers)
        _modules[self._key] = self

    def __getstate__(self) -> dict[str, Any]:
        """Without what holds addresses."""
        state = dict(self.__dict__)
        del state["_ready"], state["_key"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._enter()

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, kind={self.stored.kind}"


_numbers = count()
_modules: WeakValueDictionary[int, PackedLinear] = WeakValueDictionary()
"""By number, for the operation below: `torch.compile` sees a number and no Python object."""


@torch.library.custom_op("q2n::packed_linear", mutates_args=())
def _operation(x: Tensor, number: int, out_features: int) -> Tensor:
    return _modules[number].multiply(x)


@_operation.register_fake
def _(x: Tensor, number: int, out_features: int) -> Tensor:
    return x.new_empty(*x.shape[:-1], out_features)


@torch.library.custom_op("q2n::packed_linear_back", mutates_args=())
def _back(y: Tensor, number: int, in_features: int) -> Tensor:
    return _modules[number].multiply_back(y)


@_back.register_fake
def _(y: Tensor, number: int, in_features: int) -> Tensor:
    return y.new_empty(*y.shape[:-1], in_features)


def _remember(ctx: Any, inputs: tuple[Tensor, int, int], output: Tensor) -> None:
    x, ctx.number, _ = inputs
    ctx.in_features = x.shape[-1]
    ctx.module = _modules[ctx.number]  # so that it lives until then


def _gradient(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
    return _back(gradient, ctx.number, ctx.in_features), None, None


_operation.register_autograd(_gradient, setup_context=_remember)
