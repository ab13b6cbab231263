"""Checkpoints: what a quantized model is written as, and the way back."""

from q2n.formats.compressed_tensors import CompressedTensors
from q2n.formats.dequantized import Dequantized
from q2n.formats.format import Format
from q2n.formats.gptq_v2 import GPTQv2
from q2n.formats.native import Native

FORMATS: dict[str, Format] = {
    format.name: format for format in (CompressedTensors(), GPTQv2(), Native(), Dequantized())
}
"""Every format by its name on the command line; the first is the default."""
