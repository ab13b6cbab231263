"""How fast is the Gram matrix accumulated, next to this machine's matrix product?

The rate counts the operations of the full product (2 tokens m^2); the panels do about 0.56
of them, so more than 100 % of the matrix product's rate is possible.
"""

from functools import partial

import torch
from measuring import best_seconds, heading, inputs, matrix_product_rate

from q2n.linalg.required_statistics import RequiredStatistics
from q2n.linalg.statistics import InputStatistics

TOKENS = 4096


def add_in_full(gram: torch.Tensor, x: torch.Tensor) -> None:
    """The same without panels."""
    values = x.float()
    gram.addmm_(values.T, values)


def main() -> None:
    heading("Accumulating G += x^T x")
    print(
        f"{'tokens x width':>15} {'dtype':>9} {'panels, s':>10} {'full, s':>8} "
        f"{'Gflop/s':>8} {'of product':>10}"
    )
    for m in (576, 1536):
        rate = matrix_product_rate(m)
        for dtype in (torch.float32, torch.bfloat16):
            x = inputs(TOKENS, m).to(dtype)
            statistics = InputStatistics(m, RequiredStatistics.GRAM)
            panels = best_seconds(partial(statistics.update, x))
            whole = best_seconds(partial(add_in_full, torch.zeros(m, m), x))
            done = 2 * TOKENS * m**2 / panels
            print(
                f"{f'{TOKENS} x {m}':>15} {str(dtype)[6:]:>9} {panels:10.4f} {whole:8.4f} "
                f"{done / 1e9:8.0f} {done / rate:10.0%}"
            )


if __name__ == "__main__":
    main()
