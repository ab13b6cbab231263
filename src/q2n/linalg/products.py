"""Matrix products over the tokens of a text, by the fastest product that is exact.

On a GPU, matrix units multiply numbers of bfloat16 or float16 exactly and add in float32, at over
ten times the rate of float32: `product` has its factors in these dtypes there (`as_factor`). A
float32 factor beside one in bfloat16 can be the sum of two of them (`in_two_parts`).

On a CPU, two libraries in torch multiply matrices of float32: BLAS, by default, and oneDNN, once it
is told that bfloat16 products with float32 sums will do. What oneDNN then does is the processor's
affair. Where there are matrix units for bfloat16 (AMX) it rounds the factors to bfloat16 and uses
them. Elsewhere it multiplies in float32, in code of its own: with AVX-512 on an AMD processor, for
which BLAS (MKL) has no AVX-512, twice as fast. Without AVX-512 nothing changes.

`probe` measures both once per process. From it follows where the fast product is taken:

    factors not rounded (relative error below 1e-5)    everywhere
    factors rounded to bfloat16                        where they are bfloat16 numbers already:
                                                       products and sums stay those of float32

and nowhere unless it is `LEAST_GAIN` times as fast. Where it is about that, two processes may
choose differently, and their results differ in the last bits. What is solved, rather than summed
over tokens, keeps to BLAS: factors, feedback, the eigenvectors.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

_HALF = (torch.bfloat16, torch.float16)
LEAST_GAIN = 1.25
"""How many times as fast as BLAS the other product must be."""
_EXACT = 1e-5
"""Relative error that float32 stays below and factors rounded to bfloat16 (2^-9 each) exceed."""
_TOKENS, _WIDTH, _ROUNDS = 256, 512, 10
_FINE = 1e-5
"""Seconds; a product takes a millisecond."""


@dataclass(frozen=True)
class Probe:
    """What oneDNN's product is on this processor, next to that of BLAS."""

    gain: float
    """Time of BLAS over its time."""
    error: float
    """Of its result, relative to the norm of the exact one."""

    def serves(self, factors: torch.dtype) -> bool:
        """Whether to take it where both factors hold numbers of this dtype."""
        exact = self.error < _EXACT or factors == torch.bfloat16
        return self.gain >= LEAST_GAIN and exact


@contextmanager
def fast_products(device: torch.device, factors: torch.dtype) -> Iterator[None]:
    """While open, float32 products on the device are the fastest that are exact for `factors`, the
    dtype whose numbers both factors hold. The setting is the process's: threads share it."""
    switch = _switch() if device.type == "cpu" else None
    if switch is None or not probe().serves(factors):
        yield
        return
    before, switch.fp32_precision = switch.fp32_precision, "bf16"
    try:
        yield
    finally:
        switch.fp32_precision = before


def as_factor(x: Float[Tensor, "..."], dtype: torch.dtype) -> Float[Tensor, "..."]:
    """x for a `product` whose result is of this dtype: as it is where the device's matrix units
    multiply its numbers exactly and add in float32, else in `dtype`."""
    return x if x.is_cuda and x.dtype in _HALF and dtype == torch.float32 else x.to(dtype)


def product(a: Float[Tensor, "m tokens"], b: Float[Tensor, "tokens n"]) -> Float[Tensor, "m n"]:
    """`a b` of factors as `as_factor` gives them, with the sums of float32 or of their own wider
    dtype."""
    if a.dtype in _HALF:
        return torch.mm(a, b, out_dtype=torch.float32)
    return a @ b


def in_two_parts(
    x: Float[Tensor, "..."],
) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
    """Two tensors in bfloat16 whose sum is x to 2^-16 of each entry: the nearest one, and what it
    leaves. float16 has the range for neither."""
    high = x.to(torch.bfloat16)
    return high, (x - high).to(torch.bfloat16)


@cache
def probe() -> Probe:
    """Measured once per process, in some 50 ms: the least times of products taken in turn, of this
    thread alone where the system counts them finely enough, so that other processes do not."""
    switch = _switch()
    if switch is None:
        return Probe(1.0, 0.0)
    clock = thread_clock()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(_TOKENS, _WIDTH, generator=generator)
    before, least = switch.fp32_precision, {"ieee": float("inf"), "bf16": float("inf")}
    try:
        for _ in range(_ROUNDS):
            for name in least:
                switch.fp32_precision = name
                start = clock()
                product = x.T @ x
                least[name] = min(least[name], clock() - start)
    finally:
        switch.fp32_precision = before
    exact = x.double().T @ x.double()
    error = float((product - exact).norm() / exact.norm())
    return Probe(least["ieee"] / least["bf16"], error)


def thread_clock() -> Callable[[], float]:
    """Seconds of this thread alone, where the system counts them finely enough: other processes do
    not show in them."""
    fine = time.get_clock_info("thread_time").resolution < _FINE
    return time.thread_time if fine else time.perf_counter


def _switch() -> Any:
    """torch's setting of the precision of float32 products on a CPU; None in a torch without it
    (before 2.9, or built without oneDNN)."""
    if not torch.backends.mkldnn.is_available():
        return None
    switch = getattr(torch.backends.mkldnn, "matmul", None)
    return switch if hasattr(switch, "fp32_precision") else None
