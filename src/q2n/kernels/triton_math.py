"""What several kernels in Triton share: rounding and division as torch has them.

Triton joins a product and a sum to one operation, and divides to the last bit or two. The kernels
whose codes must equal those of the reference are started with `EXACT`, and divide by `divided`."""

from typing import no_type_check

import triton
import triton.language as tl

EXACT = {"enable_fp_fusion": False}
"""Launch option: products are rounded before they are added."""


@triton.jit
@no_type_check
def nearest_integer(x, least, most):
    """x between two whole numbers, rounded to a whole number, half-way to the even one. Adding
    1.5 * 2^23 (or 2^52) leaves no room for a fraction."""
    large: tl.constexpr = 6755399441055744.0 if x.dtype == tl.float64 else 12582912.0
    return (tl.minimum(tl.maximum(x, least), most) + large) - large


@triton.jit
@no_type_check
def divided(a, b):
    """a / b, rounded correctly."""
    if a.dtype == tl.float64:
        return a / b
    else:
        return tl.div_rn(a, b)
