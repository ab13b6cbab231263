"""Random layers of every representation that has a kernel."""

from collections.abc import Callable

import torch
from formats.tiny_models import random_layer

from q2n.layers.centred import CentredLinear
from q2n.layers.codebook import CodebookLinear
from q2n.layers.levels import LloydMaxLinear, TrellisLinear
from q2n.layers.outliers import OutlierLinear
from q2n.layers.partly_binary import PartlyBinaryLinear
from q2n.layers.quantized import QuantizedLinear
from q2n.layers.rotated import RotatedLinear
from q2n.layers.salient_columns import SalientColumnsLinear

Shape = tuple[int, int]


def uniform(random, shape: Shape, **options):
    defaults = {"bits": 3, "group_size": 16, "symmetric": False, "dtype": torch.float16}
    return random_layer(shape, **{**defaults, **options})


def codes(random, shape: Shape, bits: int):
    return torch.randint(2**bits, shape, dtype=torch.uint8, generator=random)


def scaled(kind, bits: int, by_row: bool = False):
    def make(random, shape: Shape):
        scale = torch.rand(shape[0] if by_row else 1, generator=random) + 0.5
        return kind(codes=codes(random, shape, bits), scale=scale.half(), bits=bits)

    return make


def codebook(random, shape: Shape):
    tables = torch.randn(shape[0], 8, generator=random).bfloat16()
    return CodebookLinear(codes=codes(random, shape, 3), codebook=tables, bits=3)


def partly_binary(random, shape: Shape, low_bits: int = 1):
    low = torch.rand(shape, generator=random) < 0.8
    count, groups = int(low.sum()), -(-shape[1] // 16)
    factors = (torch.rand(2, shape[0], groups, generator=random) + 0.5).half()
    return PartlyBinaryLinear(
        low=low,
        low_codes=codes(random, (count,), low_bits) if low_bits else None,
        high_codes=codes(random, (low.numel() - count,), 4),
        mean=factors[0] if low_bits else None,
        magnitude=factors[1] if low_bits else None,
        scale=torch.rand(shape[0], 1, generator=random).half(),
        zero=codes(random, (shape[0], 1), 4),
        low_bits=low_bits,
        high_bits=4,
        group_size=min(16, shape[1]),
    )


def outliers(random, shape: Shape):
    grid = uniform(random, shape)
    columns = torch.randperm(shape[1], generator=random)[: min(3, shape[1])]
    return OutlierLinear.of(grid, columns, torch.randn(shape[0], len(columns), generator=random))


def salient_columns(random, shape: Shape):
    salient = torch.rand(shape[1], generator=random) < 0.3
    salient[0], salient[-1] = False, True
    high = int(salient.sum())
    values = [
        (torch.rand(n, generator=random) + 0.5).half() for n in (*3 * shape[:1], shape[1] - high)
    ]
    return SalientColumnsLinear(
        salient=salient,
        low_codes=codes(random, (shape[0], shape[1] - high), 1),
        high_codes=codes(random, (shape[0], high), 4),
        mean=values[0] - 1,
        magnitude=values[1],
        scale=values[2],
        factor=values[3],
        zero=codes(random, shape[:1], 4),
        high_bits=4,
    )


def rotated(make: Callable, projection: str = "kronecker", extras: bool = True):
    def around(random, shape: Shape):
        rescale = torch.rand(shape[1], generator=random) + 0.5
        scale = torch.rand(shape[0], generator=random) + 0.5
        return RotatedLinear(
            inner=make(random, shape),
            projection=projection,
            seed=7,
            rescale=rescale.bfloat16() if extras else None,
            output_scale=scale.half() if extras else None,
        )

    return around


UNROTATED = {
    "uniform": uniform,
    "symmetric": lambda r, s: uniform(r, s, symmetric=True, dtype=torch.bfloat16),
    "per channel": lambda r, s: uniform(r, s, bits=2, group_size=-1, dtype=torch.float32),
    "centred": scaled(CentredLinear, 3),
    "centred, 8 bits": scaled(CentredLinear, 8, by_row=True),
    "lloyd-max": scaled(LloydMaxLinear, 4, by_row=True),
    "trellis": scaled(TrellisLinear, 2),
    "trellis rows": scaled(TrellisLinear, 3, by_row=True),
    "codebook": codebook,
    "binary": partly_binary,
    "two bits below": lambda r, s: partly_binary(r, s, low_bits=2),
    "zeros below": lambda r, s: partly_binary(r, s, low_bits=0),
    "outliers": outliers,
    "salient columns": salient_columns,
}
ROTATED = {
    "rotated trellis": rotated(scaled(TrellisLinear, 2), extras=False),
    "rotated centred": rotated(scaled(CentredLinear, 2)),
    "rotated outliers": rotated(outliers),
    "rotated binary": rotated(partly_binary),
    "independent blocks": rotated(scaled(LloydMaxLinear, 3), "blocks"),
    "not permuted": rotated(codebook, "blocks_unpermuted", extras=False),
}


def layer_of(make: Callable, shape: Shape, seed: int = 0) -> QuantizedLinear:
    return make(torch.Generator().manual_seed(seed), shape)
