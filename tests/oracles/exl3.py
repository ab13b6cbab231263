"""EXL3 from its layout, one weight at a time, in numpy's float16: no code of the package."""

import numpy as np


def value(state, codebook):
    """What a 16-bit state stands for."""
    if codebook == "mul1":
        product = state * 0x83DCD12D % 2**32
        total = sum(product.to_bytes(4, "little"))
        number = _float16(0x6400 + total)
        exact = float(number) * float(_float16(0x1EEE)) + float(_float16(0xC931))  # float64: exact
        return np.float16(exact)
    product = state * 89226354 + 64248484 if codebook == "3inst" else state * 0xCBAC1FED
    product = (product % 2**32 & 0x8FFF8FFF) ^ 0x3B603B60
    return _float16(product % 2**16) + _float16(product // 2**16)


def _float16(bits):
    return np.array([bits], dtype=np.uint16).view(np.float16)[0]


def bits_of_tile(words):
    """The 256 b bits of a tile, first bit first, from its int16 words in the file."""
    numbers = [int(word) % 2**16 for word in words]
    swapped = [numbers[i ^ 1] for i in range(len(numbers))]
    return [number >> place & 1 for number in swapped for place in range(15, -1, -1)]


def tile(words, bits, codebook):
    """The 16 x 16 weights of a tile: [input, output]."""
    stream = bits_of_tile(words)
    weights = np.zeros((16, 16), dtype=np.float16)
    for step in range(256):
        end = (step + 1) * bits
        window = [stream[(end - 16 + i) % len(stream)] for i in range(16)]
        state = int("".join(map(str, window)), 2)
        unit, place = divmod(step, 8)
        first = 2 * (unit % 4)
        row = (first, first + 1, first + 8, first + 9)[place % 4]
        column = unit // 4 + (8 if place >= 4 else 0)
        weights[row, column] = value(state, codebook)
    return weights


def inner(trellis, codebook):
    """The matrix between the two Hadamard transforms, [in, out]."""
    down, across, words = trellis.shape
    matrix = np.zeros((16 * down, 16 * across), dtype=np.float16)
    for i in range(down):
        for j in range(across):
            part = tile(trellis[i, j].tolist(), words // 16, codebook)
            matrix[16 * i : 16 * i + 16, 16 * j : 16 * j + 16] = part
    return matrix


def hadamard(matrix):
    """The transform of each 128 rows, in float64."""
    signs = np.array([[(-1) ** (i & j).bit_count() for j in range(128)] for i in range(128)])
    pieces = matrix.astype(np.float64).reshape(-1, 128, matrix.shape[1])
    return (signs / np.sqrt(128) @ pieces).reshape(matrix.shape)


def weight(trellis, suh, svh, codebook):
    """W as torch has it, [out, in], in float64."""
    middle = hadamard(hadamard(inner(trellis, codebook)).T).T
    dense = suh.astype(np.float64)[:, None] * middle * svh.astype(np.float64)[None, :]
    return dense.T
