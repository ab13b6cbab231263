r"""How far a grid centred on 0 reaches: in root mean squares of the matrix, for Gaussian weights.

The range `S / RMS(W)` with the least expected square error on Gaussian weights depends on the
width (Max 1960): 1.49 at 2 bits, 2.05 at 3, 2.51 at 4. QuIP takes 2.4 at every width. At 2 bits
that makes each step 1.6 times the best one, and costs perplexity (docs/LOG.md).
"""

import torch
from jaxtyping import Float
from torch import Tensor

from q2n.errors import NumericalError
from q2n.grids.uniform import least_scale

BEST_CLIP_SIGMA = {2: 1.494, 3: 2.051, 4: 2.514, 8: 3.922}
"""S in units of the root mean square that suits Gaussian weights best, by bits."""


def fit(
    weight: Float[Tensor, "out in"], clip_sigma: float, dtype: torch.dtype, name: str
) -> Float[Tensor, "1"]:
    """S of a layer `name`: `clip_sigma` times its root mean square, in its stored dtype.

    Raises:
        NumericalError: weights that are not finite, or an S that overflows `dtype`.
    """
    exact = clip_sigma * weight.square().mean().sqrt()
    scale = exact.to(dtype).clamp(min=least_scale(dtype))
    if not torch.isfinite(scale):
        raise NumericalError(
            f"{name}: a scale of {float(exact):.3g} cannot be stored in {dtype}; its weight is "
            "not finite, or store the checkpoint in bfloat16 or float32"
        )
    return scale.unsqueeze(0)
