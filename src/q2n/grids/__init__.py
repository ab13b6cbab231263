"""Real numbers to codes and back."""

from q2n.grids.affine import AffineLinear
from q2n.grids.binary import PartlyBinaryLinear
from q2n.grids.centred import CentredLinear
from q2n.grids.codebook import CodebookLinear
from q2n.grids.lloyd_max import LloydMaxLinear
from q2n.grids.outliers import OutlierLinear
from q2n.grids.quantized import QuantizedLinear
from q2n.grids.rotated import RotatedLinear
from q2n.grids.trellis import TrellisLinear

REPRESENTATIONS: dict[str, type[QuantizedLinear]] = {
    layer.kind: layer
    for layer in (
        AffineLinear,
        CentredLinear,
        LloydMaxLinear,
        TrellisLinear,
        RotatedLinear,
        CodebookLinear,
        PartlyBinaryLinear,
        OutlierLinear,
    )
}
"""Every representation by its kind: how a stored layer is rebuilt."""
