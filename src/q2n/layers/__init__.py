"""What is stored of one linear: one representation per file, each with its trainable form."""

from q2n.layers.blocks import BlockLinear
from q2n.layers.centred import CentredLinear
from q2n.layers.codebook import CodebookLinear
from q2n.layers.exl3 import EXL3Linear
from q2n.layers.levels import LloydMaxLinear, TrellisLinear
from q2n.layers.outliers import OutlierLinear
from q2n.layers.partly_binary import PartlyBinaryLinear
from q2n.layers.quantized import QuantizedLinear
from q2n.layers.rotated import RotatedLinear
from q2n.layers.salient_columns import SalientColumnsLinear
from q2n.layers.uniform import UniformLinear

REPRESENTATIONS: dict[str, type[QuantizedLinear]] = {
    layer.kind: layer
    for layer in (
        UniformLinear,
        CentredLinear,
        LloydMaxLinear,
        TrellisLinear,
        RotatedLinear,
        CodebookLinear,
        PartlyBinaryLinear,
        OutlierLinear,
        BlockLinear,
        EXL3Linear,
        SalientColumnsLinear,
    )
}
"""Every representation by its kind: how a stored layer is rebuilt."""

QuantizedLinear.representations = REPRESENTATIONS
