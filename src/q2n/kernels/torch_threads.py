"""Compiled code on torch's own threads.

numba's parallel loops have threads of their own. Between two calls, threads of OpenMP wait in a
busy loop for milliseconds: two sets of them take each other's cores, and a call of 50 microseconds
takes as long as a time slice of the operating system. So a compiled callback (compiled.py) is
handed to the OpenMP library that torch itself uses, and runs on the very threads that are waiting
there. A call takes some 2 microseconds.

Every thread runs the same callback on the same frame, an array of 64-bit integers, and takes pieces
of the work from a counter in it until nothing is left (packed_rows.py). So it does not matter how
many threads come, or when.
"""

import ctypes
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import torch

Frame = ctypes.Array[ctypes.c_int64]


def run(address: int, frame: Frame) -> None:
    """Run the callback at an address once on every thread that torch may use now."""
    threads = torch.get_num_threads()
    if threads == 1:
        run_alone(address, frame)
    else:
        _team()(address, frame, threads, 0)


def run_alone(address: int, frame: Frame) -> None:
    """Run the callback at an address on this thread."""
    _function(address)(frame)


_PROTOTYPE = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


@cache
def _function(address: int) -> Callable[[Frame], None]:
    return _PROTOTYPE(address)


@cache
def _team() -> Callable[[int, Frame, int, int], Any]:
    """OpenMP's entry for a parallel region, in the library that torch is linked with; where it has
    none, threads that Python starts."""
    folder = Path(torch.__file__).parent / "lib"
    try:
        region = ctypes.CDLL(str(folder / "libtorch_cpu.so")).GOMP_parallel
    except (OSError, AttributeError):
        return _by_python
    region.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    region.restype = None
    return region


def _by_python(address: int, frame: Frame, threads: int, _: int) -> None:
    others = [_pool().submit(run_alone, address, frame) for _ in range(threads - 1)]
    run_alone(address, frame)
    for other in others:
        other.result()


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="q2n")
