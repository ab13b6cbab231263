"""The factors of a layer with salient columns as PTQ1.61 learns them:

    w_ij = r_i f_j (a_i s_ij + mu_i)      of the columns that are not salient

Magnitudes a, factors r of rows and f of columns are parameters; signs s, means mu and the salient
columns stay as they are. Stored are `r a`, `r mu` and f.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from q2n.layers.salient_columns import SalientColumnsLinear


@dataclass(frozen=True)
class FactorFit:
    """How the factors are learned, block by block, after everything in it is rounded."""

    epochs: int
    """Each with a gradient step for every calibration window."""
    magnitude_rate: float
    """Of Adam, on a."""
    factor_rate: float
    """Of Adam, on r and f."""


class LearnedFactors(nn.Module):
    """A layer whose factors are parameters."""

    def __init__(self, layer: SalientColumnsLinear):
        super().__init__()
        self.layer = layer
        self.magnitude = nn.Parameter(layer.magnitude.float().clone())  # the layer stays as it is
        self.row = nn.Parameter(torch.ones_like(self.magnitude))
        self.column = nn.Parameter(layer.factor.float().clone())
        self._signs = layer.signs()
        self._mean, self._high = layer.mean.float().unsqueeze(1), layer.high()

    def weight(self, dtype: torch.dtype) -> Float[Tensor, "out in"]:
        """The dense weight, differentiable in the parameters."""
        low = self.magnitude.unsqueeze(1) * self._signs + self._mean
        low = self.row.unsqueeze(1) * self.column * low
        return self.layer.merged(low, self._high).to(dtype)

    @torch.no_grad()
    def quantized(self) -> SalientColumnsLinear:
        """The layer with what was learned."""
        layer = self.layer
        return replace(
            layer,
            magnitude=(self.row * self.magnitude).to(layer.magnitude.dtype),
            mean=(self.row * layer.mean.float()).to(layer.mean.dtype),
            factor=self.column.detach().clone().to(layer.factor.dtype),
        )
