r"""PTQ1.61 (Zhao et al. 2025): one bit for most columns, four for those with large inputs.

A column j of the input is *salient* if its largest |x_j| in the full-precision model (or the mean)
is among the floor(rho m) + 1 largest of the m ones: whole columns, so that the mask costs one bit
each.

- Salient columns are rounded to nearest on the min-max grid of the *whole* row.
- Of the other columns' entries w of a row: `mu = mean w`, `a = mean |w|` (not `|w - mu|`), both
  over entries that are not 0, and `w ~ r_i f_j (a sign(w - mu) + mu)`; r and f start at 1.

Then a, r and f of all layers of the block are fitted together by gradient steps; signs, mu and the
salient columns stay (refit/factors.py). What is stored is `r a`, `r mu` and f.

The loss is OmniQuant's with both its targets, less the logarithm of the mean cosine at each of
them. The rates are the released code's. The preprocessing of the paper is `q2n preprocess`
(preprocess/restorative_lora.py). sign(0) is 1 here; the code lets such a weight be mu.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool
from torch import Tensor

from q2n.grids.uniform import UniformGrid, stored_numbers
from q2n.layers.learned_factors import FactorFit
from q2n.layers.quantized import StorageSpec
from q2n.layers.salient_columns import SalientColumnsLinear
from q2n.linalg.channel_sizes import ChannelSizes
from q2n.linalg.required_statistics import RequiredStatistics
from q2n.method import LayerProblem, Method, Work
from q2n.option_types import Bits, Count, Positive, ShareInside


@dataclass(frozen=True, kw_only=True)
class PTQ161(Method):
    """Binary, salient input channels at 4 bits, factors learned on each block's output."""

    name: ClassVar[str] = "ptq161"
    strategy: ClassVar[str] = "salience, optimization"
    bits_offered: ClassVar[str] = "1 and 2, 3, 4 or 8 in one layer"

    salient_fraction: ShareInside = 0.2
    """Share of the input channels whose weights have more than a bit."""
    high_bits: Bits = 4
    """Bits of these: 2, 3, 4 or 8."""
    saliency: Literal["largest", "mean"] = "largest"
    """What a channel is salient by: its largest input (the released code), or the mean of their
    sizes (the paper's algorithm)."""
    fit_epochs: Count = 20
    """Passes over the calibration windows to fit the factors of a block."""
    magnitude_rate: Positive = 5e-4
    """Rate of AdamW on the magnitudes of the rows."""
    factor_rate: Positive = 1e-3
    """Rate of AdamW on the factors of rows and columns."""

    @property
    def required_statistics(self) -> RequiredStatistics:
        return RequiredStatistics.GRAM | RequiredStatistics.SIZES  # that one for the record alone

    @property
    def work(self) -> Work:
        return Work(layer=1.0)

    @property
    def storage(self) -> StorageSpec:
        return StorageSpec(kind=SalientColumnsLinear.kind)

    @property
    def factor_fit(self) -> FactorFit:
        return FactorFit(self.fit_epochs, self.magnitude_rate, self.factor_rate)

    def quantize(self, problem: LayerProblem) -> SalientColumnsLinear:
        weight, dtype = problem.weight, problem.scale_dtype
        salient = salient_columns(problem.measured.sizes, self.saliency, self.salient_fraction)
        grid = UniformGrid(bits=self.high_bits)
        scale, zero = grid.fit(weight, dtype, problem.name)
        low = weight[:, ~salient]
        counted = (low != 0).sum(1).clamp(min=1)
        mean = stored_numbers(low.sum(1) / counted, dtype, problem.name)
        return SalientColumnsLinear(
            salient=salient,
            low_codes=(low >= mean.float().unsqueeze(1)).to(torch.uint8),
            high_codes=grid.encode(weight[:, salient], scale, zero),
            mean=mean,
            magnitude=stored_numbers(low.abs().sum(1) / counted, dtype, problem.name),
            factor=torch.ones(low.shape[1], dtype=dtype, device=weight.device),
            scale=scale.squeeze(1),
            zero=zero.squeeze(1),
            high_bits=self.high_bits,
        )


def salient_columns(sizes: ChannelSizes, saliency: str, fraction: float) -> Bool[Tensor, " in"]:
    """The floor(fraction m) + 1 largest of the m channels; of equal ones the first."""
    size = sizes.largest if saliency == "largest" else sizes.total
    chosen = size.argsort(descending=True, stable=True)[: int(fraction * len(size)) + 1]
    return torch.zeros_like(size, dtype=torch.bool).index_fill_(0, chosen, True)
