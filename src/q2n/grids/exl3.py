r"""The frame of EXL3's code: suh and svh of one weight (layers/exl3.py), chosen as exllamav3 does.

    W = diag(svh) H A^T H diag(suh),      A ~ decoded tiles, [in, out]

svh: random signs times the root mean square of each output over their mean; signs alone where few
inputs have most of the energy (the 2 % largest 15 % of all roots of energies, or more). suh: random
signs times the root mean square that is left of each input, over that which the code wants A to
have. Both are rounded to float16 before A is computed.

How large the weights of A should be for the least error is a number per width, found on Gaussian
weights (`SHARE`). Error over energy at these sizes, on 16 tiles, mul1:

    bits       1       2       3        4        5        6        7        8
    error   0.2744  0.0689  0.0176   0.00457  0.00120  0.00031  0.000082  0.000021

exllamav3 searches it per matrix, by trial on a sample of the tiles; of a small matrix the search
would take longer than all the rest.

Source: turboderp-org/exllamav3, modules/quant/exl3_lib/quantize.py (`regularize`).
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Float16
from torch import Tensor

from q2n.errors import NumericalError
from q2n.linalg.block_hadamard import block_hadamard, both_sided
from q2n.linalg.exl3_code import CodebookName, values
from q2n.linalg.finite import all_finite
from q2n.linalg.random_orthogonal import random_signs

SHARE = {1: 1.1, 2: 1.0, 3: 0.92, 4: 0.87, 5: 0.83, 6: 0.79, 7: 0.76, 8: 0.74}
"""The root mean square of the weights over that of the code's values, by bits."""
_LARGEST_SHARE = 0.15
_LEAST_SCALE = 0.01
"""Of an input, over the mean of all."""


class Frame(NamedTuple):
    """What stands around the decoded tiles."""

    suh: Float16[Tensor, " in"]
    svh: Float16[Tensor, " out"]

    def inside(self, weight: Float[Tensor, "out in"]) -> Float[Tensor, "in out"]:
        """A of a weight; rows whose svh is 0 count as 0."""
        rows = torch.where(self.svh == 0, 0, weight.T / self.svh.to(weight)).T
        return both_sided(rows / self.suh.to(weight)).T.contiguous()

    def outside(self, tiles: Float[Tensor, "in out"]) -> Float[Tensor, "out in"]:
        """The weight of an A."""
        return self.svh.to(tiles)[:, None] * both_sided(tiles.T) * self.suh.to(tiles)


def fit(
    weight: Float[Tensor, "out in"],
    energy: Float[Tensor, " in"],
    bits: int,
    codebook: CodebookName,
    *,
    seed: int,
    name: str,
) -> Frame:
    """The frame of the weight of a layer `name`; `energy` is the mean square of each input.

    Raises:
        NumericalError: weights that are not finite, or a scale that overflows float16.
    """
    rows, columns = weight.shape
    svh = _output_scales(weight, energy) * random_signs(rows, seed, 0).to(weight)
    svh = _stored(svh, "outputs", name)
    scaled = torch.where(svh == 0, 0, weight.T / svh.to(weight)).T
    size = _root_mean_square(block_hadamard(rows).apply_to_outputs(scaled), 0)
    size = size.clamp(min=_LEAST_SCALE * float(size.mean()))
    wanted = SHARE[bits] * float(_root_mean_square(values(codebook), 0))
    suh = (size / wanted).clamp(min=torch.finfo(torch.float16).tiny)
    suh = suh * random_signs(columns, seed, 1).to(weight)
    return Frame(_stored(suh, "inputs", name), svh)


def _output_scales(
    weight: Float[Tensor, "out in"], energy: Float[Tensor, " in"]
) -> Float[Tensor, " out"]:
    """Relative sizes of the outputs; 1 for all where the inputs are too uneven, 0 for what is 0."""
    size = _root_mean_square(weight, 1)
    roots = energy.sqrt().sort(descending=True).values
    largest = roots[: len(roots) // 50].sum()
    if not largest < _LARGEST_SHARE * roots.sum():
        return (size > 0).to(weight)
    return size / size.mean().clamp(min=torch.finfo(size.dtype).tiny)


def _root_mean_square(values: Float[Tensor, "..."], axis: int) -> Float[Tensor, "..."]:
    return values.square().mean(axis).sqrt()


def _stored(scale: Float[Tensor, " n"], of: str, name: str) -> Float16[Tensor, " n"]:
    stored = scale.half()
    if not all_finite(stored):
        raise NumericalError(
            f"{name}: the scales of its {of} cannot be stored in float16 (largest: "
            f"{float(scale.abs().max()):.3g}); leave the layer in full precision: --ignore {name!r}"
        )
    return stored
