"""Tail-biting trellis codes from their definition: one code at a time, all sequences."""

import itertools

import numpy as np


def decode(codes, values, base, digits):
    """The values of the codes of one circular segment."""
    result = []
    for i in range(len(codes)):
        state = 0
        for back in range(digits):
            state += int(codes[(i - back) % len(codes)]) * base ** (digits - 1 - back)
        result.append(values[state])
    return np.array(result)


def all_sequences(rows, values, base, digits):
    """Codes and values of all circular segments of `rows` codes."""
    codes = np.array(list(itertools.product(range(base), repeat=rows)))
    return codes, np.array([decode(row, values, base, digits) for row in codes])
