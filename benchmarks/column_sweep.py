"""How fast is GPTQ's column sweep, next to this machine's matrix product?

The rate counts what the feedback needs at least: out m^2 operations (each of the m^2 / 2
entries of the triangle, a multiplication and an addition, for every row). `reference` is plain
torch, which serves devices without a kernel, run here on the CPU.
"""

import os
from functools import partial
from unittest.mock import patch

import torch
from measuring import best_seconds, heading, inputs, matrix_product_rate

from q2n.grids.uniform import UniformGrid
from q2n.kernels.column_sweep import sweep
from q2n.kernels.rounding_rules import UniformRule
from q2n.linalg.factor import feedback
from q2n.linalg.required_statistics import RequiredStatistics
from q2n.linalg.statistics import InputStatistics

SHAPES = ((1536, 576), (576, 1536))
BLOCKS = (32, 64, 128)
KERNELS = {"numba": "", "reference": "reference"}
"""Values of Q2N_KERNELS (kernels/dispatch.py)."""


def problem(rows: int, m: int) -> tuple[torch.Tensor, torch.Tensor, UniformRule]:
    """Weight, feedback and grid of one layer, transposed."""
    statistics = InputStatistics(m, RequiredStatistics.GRAM)
    statistics.update(inputs(4096, m))
    weight = torch.randn(rows, m, generator=torch.Generator().manual_seed(1))
    scale, zero = UniformGrid(bits=3).fit(weight, torch.float32, "layer")
    return (
        weight.T.contiguous(),
        feedback(statistics.gram, 0.01).matrix,
        UniformRule(
            scale.T.contiguous(), zero.T.contiguous(), torch.zeros(m, dtype=torch.int64), 7
        ),
    )


def main() -> None:
    heading("Rounding a layer column by column, 3 bits")
    print(
        f"{'out x in':>12} {'kernel':>9} {'block':>6} {'seconds':>8} {'Gflop/s':>8} "
        f"{'of product':>10}"
    )
    for rows, m in SHAPES:
        rate = matrix_product_rate(m)
        given = problem(rows, m)
        for name, kernels in KERNELS.items():
            for block in BLOCKS:
                with patch.dict(os.environ, Q2N_KERNELS=kernels):
                    seconds = best_seconds(partial(sweep, *given, block_size=block))
                done = rows * m**2 / seconds
                print(
                    f"{f'{rows} x {m}':>12} {name:>9} {block:6} {seconds:8.4f} "
                    f"{done / 1e9:8.1f} {done / rate:10.0%}"
                )


if __name__ == "__main__":
    main()
