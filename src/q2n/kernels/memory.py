"""Memory behind an address, for compiled callbacks (compiled.py), which get nothing but integers.

Arrays are made from addresses over and over: that costs nothing, while an array that numba has
allocated is counted at every use, and a view of it too. So a callback allocates its working memory
once (`working_memory`), and goes by addresses from there.

Indices are unsigned (`U`) wherever they are sums: numba lets a signed index count from the end,
and the test for it keeps a loop from being vectorised.
"""

from typing import no_type_check

import numba
import numpy as np
from numba import types
from numba.extending import intrinsic

from q2n.kernels.compiled import compiled

U = np.uint64


@compiled()
@no_type_check
def working_memory(count):
    """An array of `count` times 8 bytes. Whoever holds it must use it once at the end."""
    return np.empty(count, np.uint64)


@intrinsic
@no_type_check
def _pointer(typing, address):
    def generate(context, builder, signature, args):
        return builder.inttoptr(args[0], context.get_value_type(types.voidptr))

    return types.voidptr(types.intp), generate


@intrinsic
@no_type_check
def add_to(typing, address, amount):
    """Add to the 64-bit integer at an address, and return what it was; one thread at a time."""

    def generate(context, builder, signature, args):
        integer = context.get_value_type(types.int64)
        pointer = builder.inttoptr(args[0], integer.as_pointer())
        return builder.atomic_rmw("add", pointer, args[1], "monotonic")

    return types.int64(types.intp, types.int64), generate


@intrinsic
@no_type_check
def eight_bytes(typing, address):
    """The 8 bytes at any address, as an integer."""

    def generate(context, builder, signature, args):
        integer = context.get_value_type(types.uint64)
        loaded = builder.load(builder.inttoptr(args[0], integer.as_pointer()))
        loaded.align = 1
        return loaded

    return types.uint64(types.intp), generate


@intrinsic
@no_type_check
def bits_of(typing, value):
    """A number of 32 bits as an integer of the same bits."""

    def generate(context, builder, signature, args):
        return builder.bitcast(args[0], context.get_value_type(types.uint32))

    return types.uint32(types.float32), generate


@compiled()
@no_type_check
def bytes_at(address, count):
    """`count` bytes."""
    return numba.carray(_pointer(address), (count,), np.uint8)


@compiled()
@no_type_check
def halves_at(address, count):
    """`count` numbers of 16 bits."""
    return numba.carray(_pointer(address), (count,), np.uint16)


@compiled()
@no_type_check
def floats_at(address, count):
    """`count` numbers of 32 bits."""
    return numba.carray(_pointer(address), (count,), np.float32)


@compiled()
@no_type_check
def words_at(address, count):
    """`count` unsigned integers of 32 bits."""
    return numba.carray(_pointer(address), (count,), np.uint32)


@compiled()
@no_type_check
def eights_at(address, count):
    """`count` unsigned integers of 64 bits."""
    return numba.carray(_pointer(address), (count,), np.uint64)


@compiled()
@no_type_check
def integers_at(address, count):
    """`count` integers of 64 bits."""
    return numba.carray(_pointer(address), (count,), np.int64)
