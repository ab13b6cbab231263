"""Which compilers for GPUs are installed beside torch."""

from functools import cache
from importlib.util import find_spec


@cache
def has_triton() -> bool:
    """Whether Triton's kernels can be imported; looked up once, for they are called often."""
    return find_spec("triton") is not None
