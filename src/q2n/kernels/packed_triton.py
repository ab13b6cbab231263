"""Products with packed rows on a GPU: in Triton (triton_rows.py) where it is installed and has a
kernel for the representation, else by the reference.
"""

from jaxtyping import Float
from torch import Tensor

from q2n.kernels.optional import has_triton
from q2n.kernels.packed_rows import PackedRows, product_reference
from q2n.kernels.packed_trellis import TrellisRows
from q2n.kernels.packed_uniform import UniformRows


def product_triton(
    x: Float[Tensor, "tokens in"], weight: PackedRows, bias: Float[Tensor, " out"] | None
) -> Float[Tensor, "tokens out"]:
    """As `product_reference`, with the weight in float32."""
    if not isinstance(weight, UniformRows | TrellisRows) or not has_triton():
        return product_reference(x, weight, bias)
    from q2n.kernels import triton_rows  # needs triton

    if isinstance(weight, UniformRows):
        result = triton_rows.uniform_product(x, weight)
    else:
        result = triton_rows.trellis_product(x, weight)
    return (result if bias is None else result + bias).to(x.dtype)
