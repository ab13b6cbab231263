"""How much error do trellis codes leave on Gaussian weights, and how long does the search take?

Error over energy, with the values of the states in three orders: random; the newest code decides
the part of the Gaussian, so that the next values are never alike; newest and oldest code decide it
together (linalg/trellis_code.py). The time is that of the last order, and as a share of the rate of
a matrix product, at 4 operations per state and weight.
"""

import numpy as np
import torch
from measuring import best_seconds, heading, matrix_product_rate

from q2n.kernels.dispatch import round_columns
from q2n.kernels.trellis_search import TrellisRule
from q2n.linalg import lloyd_max, trellis_code

COLUMNS, ROWS = 100, 1536


def main() -> None:
    heading("Rounding Gaussian weights to trellis codes")
    rate = matrix_product_rate(576)
    print(
        f"{'bits':>5} {'states':>7} {'lloyd-max':>10} {'random':>8} {'newest':>8} {'both':>8} "
        f"{'bound':>8} {'ns/weight':>10} {'of product':>10}"
    )
    weight = torch.randn(COLUMNS, ROWS, generator=torch.Generator().manual_seed(1))
    for bits in trellis_code.DIGITS:
        values = trellis_code.values(bits)
        errors = [error(weight, order, bits) for order in (*other_orders(bits), values)]
        seconds = best_seconds(lambda values=values, bits=bits: rounded(weight, values, bits))
        nanoseconds = seconds / weight.numel() * 1e9
        levels = lloyd_max.levels(bits).float()
        plain = (weight[..., None] - levels).square().amin(2).mean()
        print(
            f"{bits:5} {len(values):7} {plain:10.5f} {' '.join(f'{x:8.5f}' for x in errors)} "
            f"{2.0 ** (-2 * bits):8.5f} {nanoseconds:10.0f} "
            f"{4 * len(values) / nanoseconds * 1e9 / rate:10.0%}"
        )


def other_orders(bits: int) -> list[torch.Tensor]:
    """The same values, random and by the newest code."""
    random = np.random.RandomState(1)
    values = trellis_code.values(bits).sort().values
    states, shared = len(values), len(values) >> bits
    state = np.arange(states)
    part = state // shared ^ random.randint(2**bits, size=shared)[state % shared]
    order = np.lexsort((random.permutation(states), part))
    newest = torch.empty_like(values)
    newest[torch.from_numpy(order)] = values
    return [values[torch.from_numpy(random.permutation(states))], newest]


def rounded(weight: torch.Tensor, values: torch.Tensor, bits: int) -> torch.Tensor:
    """The error of each weight."""
    no_feedback = torch.zeros(len(weight), len(weight))
    return round_columns(weight, weight, no_feedback, TrellisRule(values, bits))[1]


def error(weight: torch.Tensor, values: torch.Tensor, bits: int) -> float:
    return float(rounded(weight, values, bits).square().mean() / weight.square().mean())


if __name__ == "__main__":
    main()
