r"""Products of a few vectors with a Kronecker product of two matrices (linalg/kronecker.py).

    y = P_out (A (x) B) P_in diag(s)^-1 x

Read as a p x q matrix X, a permuted vector becomes `A X B^T`: q entries side by side are added up
at once, four products to a load and a store. A vector stays in the nearest cache through both
products and both permutations. The reference takes six calls to torch for that, each of which costs
more than the arithmetic if there are one or two vectors. A GPU runs the reference: for two matrix
products and two gathers torch has kernels.
"""

import ctypes
from dataclasses import dataclass
from functools import cached_property
from typing import no_type_check

import numpy as np
import torch
from jaxtyping import Float, Int32
from torch import Tensor

from q2n.kernels import torch_threads
from q2n.kernels.compiled import compiled, compiled_callback
from q2n.kernels.memory import (
    U,
    add_to,
    bits_of,
    floats_at,
    halves_at,
    integers_at,
    words_at,
    working_memory,
)
from q2n.kernels.packed_rows import KINDS, rounded

LENGTH = 16
_FRAME = ctypes.c_int64 * LENGTH
FEW = 8
"""Tokens up to which calls cost more than arithmetic."""
_WIDEST = 128
"""A matrix with more rows is multiplied faster by torch."""


@dataclass(frozen=True, eq=False)
class KroneckerProduct:
    """`P_out (A (x) B) P_in diag(divisor)^-1`, and a factor for each entry of the result."""

    left: Float[Tensor, "p p"]
    """A, in float32 as all."""
    right: Float[Tensor, "q q"]
    """B transposed."""
    into: Int32[Tensor, " n"]
    """P_in: entry k of what A and B see is entry into[k] of x."""
    out: Int32[Tensor, " n"]
    """P_out, in the same way."""
    divisor: Float[Tensor, " n"] | None
    factor: Float[Tensor, " n"] | None

    @cached_property
    def frame(self) -> bytes:
        """The frame of every call, with zeros where calls differ."""
        optional = [0 if t is None else t.data_ptr() for t in (self.divisor, self.factor)]
        tensors = [t.data_ptr() for t in (self.left, self.right, self.into, self.out)]
        return bytes(_FRAME(0, 0, len(self.left), len(self.right), *tensors, *optional))


def kronecker_reference(
    x: Float[Tensor, "tokens n"], product: KroneckerProduct, dtype: torch.dtype
) -> Float[Tensor, "tokens n"]:
    """The product with each row of x, computed in float32."""
    p, q = len(product.left), len(product.right)
    work = x.float() if product.divisor is None else x.float() / product.divisor
    work = product.left @ work.index_select(1, product.into).view(-1, p, q)
    work = (work.view(-1, q) @ product.right).view(x.shape).index_select(1, product.out)
    return (work if product.factor is None else work * product.factor).to(dtype)


def kronecker_columns(
    x: Float[Tensor, "n tokens"], product: KroneckerProduct
) -> Float[Tensor, "n tokens"]:
    """The product with each column of x, in the dtype of x: for many tokens. Permutations then move
    whole rows, and both products are matrix products with long rows. x, contiguous, is used up:
    another piece of memory would take longer to map than to fill."""
    (p, left), (q, right) = ((len(m), m.to(x.dtype)) for m in (product.left, product.right))
    if product.divisor is not None:
        x.div_(product.divisor.unsqueeze(1))
    other = torch.index_select(x, 0, product.into)
    torch.mm(left, other.view(p, -1), out=x.view(p, -1))
    torch.bmm(right.T.expand(p, q, q), x.view(p, q, -1), out=other.view(p, q, -1))
    torch.index_select(other, 0, product.out, out=x)
    return x if product.factor is None else x.mul_(product.factor.unsqueeze(1))


def kronecker_numba(
    x: Float[Tensor, "tokens n"], product: KroneckerProduct, dtype: torch.dtype
) -> Float[Tensor, "tokens n"]:
    """The same for a few rows on a CPU."""
    widest = max(len(product.left), len(product.right))
    if len(x) > FEW or widest > _WIDEST or x.dtype not in KINDS or dtype not in KINDS:
        return kronecker_reference(x, product, dtype)
    x = x.contiguous()
    result = torch.empty(x.shape, dtype=dtype)
    frame = _FRAME.from_buffer_copy(product.frame)
    frame[1] = len(x)
    frame[10], frame[11] = x.data_ptr(), KINDS[x.dtype]
    frame[12], frame[13] = result.data_ptr(), KINDS[dtype]
    torch_threads.run_alone(_rotate(), frame)
    return result


@compiled_callback
@no_type_check
def _rotate(frame):
    job = integers_at(frame, LENGTH)
    p, q = job[2], job[3]
    memory = working_memory(p * q + 2)
    first = memory.ctypes.data
    second = first + 4 * p * q
    while True:
        token = add_to(frame, 1)
        if token >= job[1]:
            break
        _take(frame, token, first)
        x, other = floats_at(first, p * q), floats_at(second, p * q)
        _multiply(floats_at(job[4], p * p), x, other, p, p, q)
        _multiply(other, floats_at(job[5], q * q), x, p, q, q)
        _give(frame, token, first)
    memory[0] = 0  # it is needed until here


@compiled()
@no_type_check
def _take(frame, token, target):
    job = integers_at(frame, LENGTH)
    n = job[2] * job[3]
    order, work = words_at(job[6], n), floats_at(target, n)
    if job[11] == 0:
        x = floats_at(job[10] + 4 * token * n, n)
        for k in range(U(n)):
            work[k] = x[order[k]]
    else:
        halves, bits = halves_at(job[10] + 2 * token * n, n), words_at(target, n)
        for k in range(U(n)):
            bits[k] = np.uint32(halves[order[k]]) << np.uint32(16)
    if job[8] != 0:
        divisor = floats_at(job[8], n)
        for k in range(U(n)):
            work[k] /= divisor[order[k]]


@compiled()
@no_type_check
def _give(frame, token, source):
    job = integers_at(frame, LENGTH)
    n = job[2] * job[3]
    order, work = words_at(job[7], n), floats_at(source, n)
    has, factor = job[9] != 0, floats_at(job[9], n)
    if job[13] == 0:
        y = floats_at(job[12] + 4 * token * n, n)
        for k in range(U(n)):
            y[k] = work[order[k]] * (factor[k] if has else np.float32(1))
    else:
        z = halves_at(job[12] + 2 * token * n, n)
        for k in range(U(n)):
            z[k] = rounded(bits_of(work[order[k]] * (factor[k] if has else np.float32(1))))


@compiled(fastmath={"contract", "reassoc", "nsz"})
@no_type_check
def _multiply(first, second, result, rows, between, columns):
    """The product of two matrices, [rows, between] and [between, columns]."""
    P, K, Q = U(rows), U(between), U(columns)
    for a in range(P):
        for j in range(Q):
            result[a * Q + j] = np.float32(0)
        for b in range(U(between // 4)):
            k = U(4) * b
            f0, f1 = first[a * K + k], first[a * K + k + U(1)]
            f2, f3 = first[a * K + k + U(2)], first[a * K + k + U(3)]
            s = k * Q
            for j in range(Q):
                result[a * Q + j] += (
                    f0 * second[s + j]
                    + f1 * second[s + Q + j]
                    + f2 * second[s + Q + Q + j]
                    + f3 * second[s + Q + Q + Q + j]
                )
        for b in range(U(between // 4 * 4), K):
            f = first[a * K + b]
            for j in range(Q):
                result[a * Q + j] += f * second[b * Q + j]
