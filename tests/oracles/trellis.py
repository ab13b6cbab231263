"""Trellis codes as they are written down: one code at a time, and every sequence tried."""

import itertools

import numpy as np


def decoded(codes, values, base, digits):
    """What the codes of one circular segment stand for."""
    found = []
    for i in range(len(codes)):
        state = 0
        for back in range(digits):
            state += int(codes[(i - back) % len(codes)]) * base ** (digits - 1 - back)
        found.append(values[state])
    return np.array(found)


def every_sequence(rows, values, base, digits):
    """All circular segments of so many rows: their codes and what these stand for."""
    codes = np.array(list(itertools.product(range(base), repeat=rows)))
    return codes, np.array([decoded(row, values, base, digits) for row in codes])
