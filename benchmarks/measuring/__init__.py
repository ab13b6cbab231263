"""What the benchmarks share: the best of a few runs, and the rate of a matrix product."""

import time
from collections.abc import Callable

import torch

RUNS = 5


def best_seconds(run: Callable[[], object], runs: int = RUNS) -> float:
    """Seconds of the fastest of `runs` runs, after one to warm up."""
    run()
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def matrix_product_rate(m: int) -> float:
    """Floating-point operations a second of a float32 product of two m x m matrices."""
    a, b = torch.randn(2, m, m)
    return 2 * m**3 / best_seconds(lambda: a @ b)


def inputs(tokens: int, m: int) -> torch.Tensor:
    """Input rows [tokens, m] with columns of unequal size, as those of a language model."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(tokens, m, generator=generator) * torch.linspace(0.05, 2, m)
    return x + 0.3 * torch.randn(m, generator=generator)


def heading(question: str) -> None:
    """What is asked, and of which machine."""
    print(f"{question}\n{torch.get_num_threads()} threads, torch {torch.__version__}\n")
