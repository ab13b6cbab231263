"""What a quantized layer takes on disk, from small layers that are really quantized and stored.

Whatever a method stores is a number of bits for each weight, row and column and for the layer: of a
layer of o rows and m columns

    size = a o m + b o + c m + d.

Four small layers of random numbers tell a, b, c and d. So nothing here knows a method or a format.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from q2n.errors import InputError
from q2n.formats.codec import Codec
from q2n.layers.quantized import QuantizedLinear
from q2n.linalg.statistics import InputStatistics
from q2n.method import LayerProblem, Method
from q2n.planning.shapes import Number

SIDES = (256, 512, 1024, 2048)
"""Of the small layers: the first that the method's groups divide, and twice that."""


@dataclass(frozen=True)
class LayerSize:
    """Bytes of a layer by its shape."""

    per_weight: Number
    per_row: Number
    per_column: Number
    constant: Number

    @classmethod
    def through(cls, side: int, of: Callable[[int, int], Number]) -> "LayerSize":
        """The one that has the sizes `of` layers whose sides are `side` and twice that."""
        small, wide, tall, both = (
            of(rows, columns) for rows in (side, 2 * side) for columns in (side, 2 * side)
        )
        per_weight = (both - wide - tall + small) / side**2
        per_row = (tall - small) / side - per_weight * side
        per_column = (wide - small) / side - per_weight * side
        constant = small - per_weight * side**2 - (per_row + per_column) * side
        return cls(per_weight, per_row, per_column, constant)

    def of(self, rows: int, columns: int) -> Number:
        """Bytes of a layer of this shape."""
        return (
            self.per_weight * rows * columns
            + self.per_row * rows
            + self.per_column * columns
            + self.constant
        )


@dataclass(frozen=True)
class LayerSizes:
    """Of one layer, in the two forms in which it lies on the disk."""

    finished: LayerSize
    """In the working folder, until the checkpoint is complete."""
    written: LayerSize
    """In the checkpoint."""


def layer_sizes(method: Method, codec: Codec, dtype: torch.dtype) -> LayerSizes:
    """What this method's layers take with this codec in a model of `dtype`.

    Raises:
        InputError: the method takes none of the small layers.
    """
    side = next(filter(lambda n: _fits(method, n), SIDES), SIDES[-1])
    layers = {
        (rows, columns): _quantized(method, codec.scale_dtype(dtype), rows, columns)
        for rows in (side, 2 * side)
        for columns in (side, 2 * side)
    }

    def finished(rows: int, columns: int) -> Number:
        return sum(x.nbytes for x in layers[rows, columns].tensors().values())

    def written(rows: int, columns: int) -> Number:
        parts = codec.encode("layer", layers[rows, columns], dtype)
        return sum(x.nbytes for x in parts.values())

    return LayerSizes(LayerSize.through(side, finished), LayerSize.through(side, written))


def _fits(method: Method, side: int) -> bool:
    try:
        method.check("layer", (side, side))
    except InputError:
        return False
    return True


def _quantized(
    method: Method, scale_dtype: torch.dtype, rows: int, columns: int
) -> QuantizedLinear:
    """A layer of random numbers."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(4, columns // 2, columns, generator=generator)
    statistics = InputStatistics(columns, method.required_statistics)
    if method.required_statistics:
        statistics.update(inputs, inputs)
    return method.quantize(
        LayerProblem(
            name="layer",
            weight=torch.randn(rows, columns, generator=generator),
            statistics=statistics,
            gradients=torch.eye(rows) if method.reads_gradients else None,
            scale_dtype=scale_dtype,
        )
    )
