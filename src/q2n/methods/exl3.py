r"""EXL3, the quantization of exllamav3: LDLQ with a trellis code over tiles of 16 x 16.

Letters: `W = diag(svh) H A^T H diag(suh)` (layers/exl3.py), `G` the Gram matrix of the input plus a
share of the mean of its diagonal. The error of the output depends on that of A, [in, out], by

    H' = H diag(suh) G diag(suh) H.

Tiles hold 16 inputs, so feedback goes in blocks of 16: from the last block to the first, each is
rounded from its weights plus what the errors of the later blocks need (linalg/factor.py,
`pending`), all its tiles at once (kernels/exl3_search.py).

Here H' is that of the scaled inputs; exllamav3 leaves the sizes of suh out of it, and takes the
signs only, so that layers with the same input share it. The frame: grids/exl3.py.

Source: turboderp-org/exllamav3, modules/quant/exl3_lib/quantize.py (`ldlq`, `quantize_exl3`). It
quantizes on a GPU alone. On a processor a weight takes some 0.1 ms, so that layers are limited to
`LARGEST` weights; the kernel for a GPU (kernels/exl3_triton.py) has not been run on one.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.functional import pad

from q2n.errors import InputError
from q2n.grids.exl3 import Frame, fit
from q2n.kernels import dispatch
from q2n.layers.exl3 import EXL3Linear
from q2n.layers.fields import CodeBits
from q2n.layers.quantized import QuantizedLinear, StorageSpec
from q2n.linalg import exl3_code
from q2n.linalg.block_hadamard import block_hadamard, padded
from q2n.linalg.exl3_code import TILE, CodebookName
from q2n.linalg.factor import Feedback, compensated, feedback, mean_energy, pending
from q2n.linalg.required_statistics import RequiredStatistics
from q2n.method import LayerProblem, Method, Work
from q2n.option_types import NonNegative

LARGEST = 2**20
"""Weights of a layer, at most."""


@dataclass(frozen=True, kw_only=True)
class EXL3(Method):
    """exllamav3's trellis codes with feedback; small layers only (see docs/formats.md)."""

    name: ClassVar[str] = "exl3"
    strategy: ClassVar[str] = "compensation, rotation"
    bits_offered: ClassVar[str] = "1 to 8"

    bits: CodeBits = 4
    """Bits per weight, 1 to 8."""
    codebook: CodebookName = "mul1"
    """How a state becomes a value; mul1 is exllamav3's default."""
    damping: NonNegative = 0.025
    """Added to the Gram matrix's diagonal, as a share of its mean."""

    @property
    def required_statistics(self) -> RequiredStatistics:
        return RequiredStatistics.GRAM

    @property
    def work(self) -> Work:
        """One and a half walks through 65 536 states for each weight (kernels/exl3_search.py), some
        80 operations a state; a factor for each layer, whose basis is its own."""
        return Work(layer=2.0, alone=0.6, weight=80 * 1.5 * 2**16)

    @property
    def storage(self) -> StorageSpec:
        return StorageSpec(kind=EXL3Linear.kind)

    def check(self, name: str, shape: tuple[int, int]) -> None:
        rows, columns = map(padded, shape)
        if rows * columns > LARGEST:
            raise InputError(
                f"{name}: {rows} x {columns} weights are too many for EXL3 on a processor (at most "
                f"{LARGEST}), and its kernel for a GPU has not been run on one; use exllamav3's "
                "own convert.py, or --method quip --quality good"
            )

    def quantize(self, problem: LayerProblem) -> QuantizedLinear:
        weight, frame, back = self._framed(problem)
        rows, columns = problem.weight.shape
        return EXL3Linear(
            codes=self.rounded(frame.inside(weight), back.matrix).T.contiguous(),
            suh=frame.suh[:columns].clone(),
            svh=frame.svh[:rows].clone(),
            bits=self.bits,
            codebook=self.codebook,
        ).with_record(damping=self.damping + back.damping)

    def compensated(
        self, problem: LayerProblem, quantized: Float[Tensor, "out in"]
    ) -> Float[Tensor, "out in"]:
        weight, frame, back = self._framed(problem)
        target, found = (frame.inside(w).T for w in (weight, _filled(quantized, *weight.shape)))
        rows, columns = quantized.shape
        return frame.outside(compensated(target, found, back, TILE).T)[:rows, :columns]

    def _framed(
        self, problem: LayerProblem
    ) -> tuple[Float[Tensor, "padded_out padded_in"], Frame, Feedback]:
        """The weight, filled up, its frame, and the feedback between rows of A."""
        gram, name = self._gram(problem.measured.gram), problem.name
        weight = _filled(problem.weight, padded(len(problem.weight)), len(gram))
        frame = fit(weight, gram.diagonal(), self.bits, self.codebook, seed=problem.seed, name=name)
        last_first = torch.arange(len(gram), device=gram.device).flip(0)
        back = feedback(_in_frame(gram, frame.suh), 0.0, order=last_first, name=name)
        return weight, frame, back

    def _gram(self, gram: Float[Tensor, "in in"]) -> Float[Tensor, "padded padded"]:
        """G, filled up: to inputs that are 0."""
        mean, size = mean_energy(gram.diagonal()), padded(len(gram))
        damped = _filled(gram, size, size)
        damped.diagonal().add_(self.damping * mean)
        return damped

    def rounded(
        self, target: Float[Tensor, "in out"], matrix: Float[Tensor, "in in"]
    ) -> UInt8[Tensor, "in out"]:
        """The codes of A, with the feedback of `matrix` (`Feedback.matrix`, last row first)."""
        values = exl3_code.values(self.codebook).to(target)
        visited = target.flip(0)
        error, codes = torch.zeros_like(visited), []
        for a in range(0, len(target), TILE):
            b = a + TILE
            updated = pending(visited, error, matrix, a, b).flip(0)
            found = dispatch.nearest_exl3_codes(
                exl3_code.to_tiles(updated)[0].contiguous(), values, self.bits
            )
            rounded = exl3_code.from_tiles(values[exl3_code.states(found, self.bits)][None])
            error[a:b] = visited[a:b] - rounded.flip(0)
            codes.append(exl3_code.from_tiles(found[None]))
        return torch.cat(codes[::-1])


def _in_frame(gram: Float[Tensor, "in in"], suh: Float[Tensor, " in"]) -> Float[Tensor, "in in"]:
    """H'."""
    scale, rotation = suh.to(gram), block_hadamard(len(gram))
    inner = rotation.apply_to_outputs(rotation.apply(scale[:, None] * gram * scale))
    return (inner + inner.T) / 2  # symmetric to the last bit again


def _filled(
    matrix: Float[Tensor, "rows columns"], rows: int, columns: int
) -> Float[Tensor, "more_rows more_columns"]:
    """The matrix with zeros below and to the right."""
    return pad(matrix, (0, columns - matrix.shape[1], 0, rows - matrix.shape[0]))
