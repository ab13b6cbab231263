"""Real numbers to codes and back."""

from q2n.grids.affine import AffineLinear
from q2n.grids.binary import PartlyBinaryLinear
from q2n.grids.codebook import CodebookLinear
from q2n.grids.outliers import OutlierLinear
from q2n.grids.quantized import QuantizedLinear

REPRESENTATIONS: dict[str, type[QuantizedLinear]] = {
    layer.kind: layer for layer in (AffineLinear, CodebookLinear, PartlyBinaryLinear, OutlierLinear)
}
"""Every representation by its kind: how a stored layer is rebuilt."""
