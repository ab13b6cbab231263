"""numba's parallel loops on as many threads as torch has.

By itself numba takes every core, whatever OMP_NUM_THREADS says (torchrun says 1 to each of its
processes) and whatever torch was told. It also sets the number of the OpenMP library that torch
runs on, so that from the first loop on torch takes every core too: the ranks of one machine, or the
programs that share it, then wait for each other.
"""

from functools import cache

import numba
import torch


def follow_torch() -> int:
    """Let the parallel loops that are called next from this thread run on as many threads as torch
    uses now, and at most `NUMBA_NUM_THREADS`. Returns the number."""
    _start()
    most = numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined] # it is set at run time
    threads = min(torch.get_num_threads(), most)
    numba.set_num_threads(threads)
    return threads


@cache
def _start() -> None:
    """Have numba start its threads; torch keeps its number."""
    before = torch.get_num_threads()
    numba.get_num_threads()
    torch.set_num_threads(before)
