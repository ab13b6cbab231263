r"""What a weight error does to the layer's output, from the Gram matrix alone.

Letters: rows x are the layer's inputs, `G = sum x^T x` over all tokens; w a row of the original
weight, q of the quantized one, `e = w - q`; W, Q and E their matrices. The output error of all
tokens is `sum |E x|^2 = tr(E G E^T)`: no forward pass. If q is multiplied by a, its error becomes
`e + (1 - a) q`, and with the products of each row `ee = e G e^T`, `eq = e G q^T`, `qq = q G q^T`

    error(a) = ee + 2 (1 - a) eq + (1 - a)^2 qq

for every a. G is symmetric: `G = T + T^T` with T its upper triangle and half its diagonal, so
`a G b^T = a T b^T + b T a^T` for rows a and b, and products with a triangle, taken in panels of
columns, need 0.58 of the work of products with G (triangle.py).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.linalg import vecdot

from q2n.linalg.triangle import panels


@dataclass(frozen=True, eq=False)
class OutputError:
    """Rowwise products of error and quantized weight under the Gram matrix."""

    ee: Float[Tensor, " out"]
    eq: Float[Tensor, " out"]
    qq: Float[Tensor, " out"]

    @classmethod
    def of(
        cls,
        weight: Float[Tensor, "out in"],
        quantized: Float[Tensor, "out in"],
        gram: Float[Tensor, "in in"],
    ) -> "OutputError":
        """Products of `weight - quantized` and `quantized` under `gram`."""
        error = weight - quantized
        triangle = gram.triu()
        triangle.diagonal().mul_(0.5)
        ee, eq, qq = weight.new_zeros(3, len(weight))
        for i, j in panels(len(gram)):
            e, q = error[:, i:j], quantized[:, i:j]
            error_t = error[:, :j] @ triangle[:j, i:j]
            quantized_t = quantized[:, :j] @ triangle[:j, i:j]
            ee += 2 * vecdot(error_t, e)
            eq += vecdot(error_t, q) + vecdot(quantized_t, e)
            qq += 2 * vecdot(quantized_t, q)
        return cls(ee, eq, qq)

    def relative(self, alpha: Float[Tensor, " out"] | None = None) -> float:
        """`tr(E G E^T) / tr(W G W^T)`, a ratio of squares, when row i of Q is multiplied by
        alpha_i (None: 1); 0 if the layer's own output is 0."""
        whole = float((self.ee + 2 * self.eq + self.qq).sum(dtype=torch.float64))
        left = 0 if alpha is None else 1 - alpha
        error = float((self.ee + 2 * left * self.eq + left**2 * self.qq).sum(dtype=torch.float64))
        return error / whole if whole > 0 else 0.0


def energy(rows: Float[Tensor, "out in"], gram: Float[Tensor, "in in"]) -> float:
    """`tr(E G E^T)` of the matrix E of these rows: the sum of |E x|^2 over all tokens."""
    triangle = gram.triu()
    triangle.diagonal().mul_(0.5)
    total = rows.new_zeros(())
    for i, j in panels(len(gram)):
        total += 2 * vecdot(rows[:, :j] @ triangle[:j, i:j], rows[:, i:j]).sum()
    return float(total)
