"""Every format: which codec lies in which container."""

from q2n.formats.compressed_tensors import CompressedTensors, CompressedTensorsEntry
from q2n.formats.dequantized import Dequantized, PlainEntry
from q2n.formats.exl3 import EXL3Codec, EXL3Entry
from q2n.formats.format import Format
from q2n.formats.ggml_blocks import GGMLBlocks
from q2n.formats.gguf.file import GGUFFile
from q2n.formats.gptq_v2 import GPTQEntry, GPTQv2
from q2n.formats.hf_folder import HFFolder
from q2n.formats.int_quantized import IntQuantized, IntQuantizedEntry, rounding_inputs
from q2n.formats.mlx import MLX, MLXEntry
from q2n.formats.native import Native
from q2n.formats.native_entry import NativeEntry

FORMATS: dict[str, Format] = {
    format.name: format
    for format in (
        Format(
            "compressed-tensors",
            CompressedTensors(),
            HFFolder(CompressedTensorsEntry()),
            rounding_inputs,
        ),
        Format("gptq_v2", GPTQv2(), HFFolder(GPTQEntry())),
        Format("mlx", MLX(), HFFolder(MLXEntry())),
        Format("exl3", EXL3Codec(), HFFolder(EXL3Entry())),
        Format("native", Native(), HFFolder(NativeEntry()), lambda format, storage, grid: format),
        Format("gguf", GGMLBlocks(), GGUFFile()),
        Format("dequantized", Dequantized(), HFFolder(PlainEntry())),
    )
}
"""By name on the command line; the first is the default."""

ALSO_READ: tuple[Format, ...] = (
    Format("compressed-tensors", IntQuantized(), HFFolder(IntQuantizedEntry(rounds_inputs=True))),
)
"""Variants of formats, which recognize their checkpoints before these do."""
