"""What does the spectrum of a Gram matrix cost, next to a product of the same size?

The null-space step needs one eigendecomposition an input site, GPTQ one Cholesky factor.
Both are given in seconds and in matrix products (2 m^3 operations). With more threads
`eigh` gains little, and loses a lot where other processes want the same cores. A massive activation
takes float64.
"""

from functools import partial

import torch
from measuring import best_seconds, heading, inputs

from q2n.linalg.factor import feedback
from q2n.linalg.spectrum import decompose


def main() -> None:
    heading("Spectrum and factor of a Gram matrix")
    print(f"{'m':>6} {'threads':>8} {'product, s':>11} {'what':>8} {'seconds':>8} {'products':>9}")
    every = torch.get_num_threads()
    for m in (576, 1536):
        x = inputs(4096, m)
        gram = x.T @ x
        massive = gram.clone()
        massive[3, 3] *= 1e8  # one activation: decomposed in float64
        work = {
            "eigh": partial(decompose, gram, "eigh"),
            "massive": partial(decompose, massive, "eigh"),
            "svd": partial(decompose, gram, "svd"),
            "factor": partial(feedback, gram, 0.01, descending=True),
        }
        for threads in sorted({1, every}):
            torch.set_num_threads(threads)
            product = best_seconds(partial(torch.mm, gram, gram))
            for name, run in work.items():
                seconds = best_seconds(run, runs=3)
                print(
                    f"{m:6} {threads:8} {product:11.4f} {name:>8} {seconds:8.4f} "
                    f"{seconds / product:9.1f}"
                )
        torch.set_num_threads(every)


if __name__ == "__main__":
    main()
