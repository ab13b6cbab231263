"""Codes of a row out of a bitstream, in compiled code (formats/packing.py has the layout).

A row may begin at any bit. Eight codes of b bits are b bytes: they are read as one integer of 64
bits, moved to its lowest bit, and spread over its bytes in three steps, all groups of eight at
once. Rows of 2, 4 and 8 bits that begin with a byte go from bytes to codes directly.
"""

from typing import no_type_check

import numpy as np

from q2n.kernels.compiled import compiled
from q2n.kernels.memory import U, bytes_at, eight_bytes, eights_at


@compiled()
@no_type_check
def unpack_row(address, size, first, bits, count, target):
    """`count` codes from the one with number `first`, in a stream of `size` bytes, to the address
    `target`, a byte each; the last group of eight is written whole."""
    start = first * bits
    if start % 8 == 0 and (bits == 2 or bits == 4 or bits == 8):
        _whole_bytes(bytes_at(address, size), U(start // 8), bits, count, bytes_at(target, count))
    else:
        groups = eights_at(target, (count + 7) // 8)
        _gather(address, size, start, bits, groups)
        _spread(U(bits), groups)


@compiled()
@no_type_check
def _whole_bytes(stream, start, bits, count, codes):
    per_byte = 8 // bits
    whole = count // per_byte
    if bits == 2:
        for k in range(U(whole)):
            value = stream[start + k]
            codes[U(4) * k] = value & np.uint8(3)
            codes[U(4) * k + U(1)] = (value >> np.uint8(2)) & np.uint8(3)
            codes[U(4) * k + U(2)] = (value >> np.uint8(4)) & np.uint8(3)
            codes[U(4) * k + U(3)] = value >> np.uint8(6)
    elif bits == 4:
        for k in range(U(whole)):
            value = stream[start + k]
            codes[U(2) * k] = value & np.uint8(15)
            codes[U(2) * k + U(1)] = value >> np.uint8(4)
    else:
        for k in range(U(whole)):
            codes[k] = stream[start + k]
    for j in range(whole * per_byte, count):  # less than a byte
        shift = np.uint8(j % per_byte * bits)
        codes[j] = (stream[start + U(whole)] >> shift) & np.uint8((1 << bits) - 1)


@compiled()
@no_type_check
def _gather(address, size, start, bits, groups):
    """The b bytes of each group of eight."""
    for k in range(len(groups)):
        bit = start + k * 8 * bits
        place = bit // 8
        if place + 8 <= size:
            value = eight_bytes(address + place)
        else:
            value = _last_bytes(bytes_at(address, size), place)
        groups[k] = value >> U(bit % 8)


@compiled()
@no_type_check
def _last_bytes(stream, place):
    value = U(0)
    for i in range(len(stream) - place):
        value |= U(stream[place + i]) << U(8 * i)
    return value


@compiled()
@no_type_check
def _spread(bits, groups):
    """Halves apart to 32 bits, then quarters to 16, then codes to 8."""
    four = (U(1) << (U(4) * bits)) - U(1)
    two = (U(1) << (U(2) * bits)) - U(1)
    two |= two << U(32)
    one = (U(1) << bits) - U(1)
    one |= one << U(16)
    one |= one << U(32)
    for k in range(U(len(groups))):
        value = groups[k]
        value = (value & four) | (((value >> (U(4) * bits)) & four) << U(32))
        value = (value & two) | (((value >> (U(2) * bits)) & two) << U(16))
        groups[k] = (value & one) | (((value >> bits) & one) << U(8))
