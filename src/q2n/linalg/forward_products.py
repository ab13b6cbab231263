"""Forward passes of a model by the fastest products of its device.

torch multiplies bfloat16 and float16 on a CPU without units for them (no AVX-512 for bfloat16, no
AMX) in code that is five to eight times slower than its float32. Yet every number of either is one
of float32, the product of two of them is exact in float32, and sums are those of float32 either
way. So a linear layer gives the same, but for the order of its sums, if its factors are widened,
multiplied as float32 numbers and the result is rounded once:

    y = half(float32(x) float32(W)^T + float32(bias)).

Widening the weight costs as much as some ten tokens: a layer with fewer than 32 stays as it is.
`gain` measures both ways once per process, for each of the two formats.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode

from q2n.linalg.products import LEAST_GAIN, fast_products, thread_clock

_HALF = (torch.bfloat16, torch.float16)
_LEAST_ROWS = 32
_ROWS, _WIDTH, _ROUNDS = 64, 512, 5


@contextmanager
def forward_products(device: torch.device) -> Iterator[None]:
    """While open, linear layers that run on the device are as fast as it can: those of float32 as
    `fast_products` has them, those in half precision widened where that gains."""
    with ExitStack() as stack:
        stack.enter_context(fast_products(device, torch.float32))
        slow = [x for x in _HALF if device.type == "cpu" and gain(x) >= LEAST_GAIN]
        if slow:
            stack.enter_context(_Widened(slow))
        yield


@cache
def gain(half: torch.dtype) -> float:
    """Time of torch's own product of this dtype over that of the widened one, of one thread."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(_ROWS, _WIDTH, generator=generator).to(half)
    weight = torch.randn(_WIDTH, _WIDTH, generator=generator).to(half)
    ways: list[Callable[..., Tensor]] = [linear, _Linear.apply]
    least = [float("inf"), float("inf")]
    clock, threads = thread_clock(), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            for _ in range(_ROUNDS):
                for number, way in enumerate(ways):
                    start = clock()
                    way(x, weight, None)
                    least[number] = min(least[number], clock() - start)
    finally:
        torch.set_num_threads(threads)
    return least[0] / least[1]


class _Widened(TorchFunctionMode):
    """Linear layers in these dtypes multiply in float32."""

    def __init__(self, dtypes: Sequence[torch.dtype]):
        super().__init__()
        self.dtypes = dtypes

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        return (self._linear if function is linear else function)(*args, **kwargs)

    def _linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        autocast = torch.is_autocast_enabled("cpu")
        dtype = torch.get_autocast_dtype("cpu") if autocast else weight.dtype
        rows = input.numel() // max(1, input.shape[-1])
        if not input.is_cpu or dtype not in self.dtypes or rows < _LEAST_ROWS:
            return linear(input, weight, bias)
        if autocast:
            input, weight = input.to(dtype), weight.to(dtype)
        return _Linear.apply(input, weight, bias)


class _Linear(torch.autograd.Function):
    """A linear layer in half precision whose products and sums are those of float32; it keeps
    nothing wider than its arguments for the way back."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Float[Tensor, "*tokens in"],
        weight: Float[Tensor, "out in"],
        bias: Float[Tensor, " out"] | None,
    ) -> Float[Tensor, "*tokens out"]:
        ctx.save_for_backward(x, weight)
        with torch.autocast("cpu", enabled=False):
            y = linear(x.float(), weight.float(), None if bias is None else bias.float())
        return y.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, above: Float[Tensor, "*tokens out"]) -> Any:
        x, weight = ctx.saved_tensors
        rows = above.float().flatten(0, -2)
        before = after = beside = None
        if ctx.needs_input_grad[0]:
            before = (rows @ weight.float()).view_as(x).to(x.dtype)
        if ctx.needs_input_grad[1]:
            after = (rows.T @ x.float().flatten(0, -2)).to(weight.dtype)
        if ctx.needs_input_grad[2]:
            beside = rows.sum(0)
        return before, after, beside
