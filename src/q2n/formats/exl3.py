"""EXL3, the format of exllamav3: what its kernels read, tile by tile.

For a weight [N, K] of b bits, codes and tiles as in linalg/exl3_code.py:

    trellis   int16 [K / 16, N / 16, 16 b]   the codes of each tile
    suh, svh  float16 [K], [N]               signs and scales of inputs and outputs
    mul1      int32, a number                there if this is the codebook; so mcg; neither: 3inst

The codes of a tile are one stream, the first bit of the first code highest in the first 32-bit
word; the words are stored as two int16 each, the lower half first. So they are the little-endian
stream of packing.py of the codes from the last to the first, its words in reverse. K and N are
filled up to multiples of 128, suh and svh with zeros, so that the further weights are 0.

Sources, in turboderp-org/exllamav3: exllamav3_ext/quant/pack.cu (`pack_trellis_kernel`),
modules/quant/exl3.py, modules/linear.py (`load_exl3`, `pad_out`), conversion/compile.py.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int16, Shaped, UInt8
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import PreTrainedModel

from q2n.errors import InputError
from q2n.formats.codec import PackedCodec
from q2n.formats.hf_entry import PackedEntry, PackedLayer
from q2n.formats.model_checks import require_text_alone
from q2n.formats.older_names import with_older_names
from q2n.formats.packing import pack, unpack
from q2n.formats.stored import StoredLayer
from q2n.layers.exl3 import EXL3Linear
from q2n.layers.quantized import QuantizedLinear, StorageSpec
from q2n.linalg.block_hadamard import BLOCK, padded
from q2n.linalg.exl3_code import MULTIPLIERS, TILE, WEIGHTS, CodebookName, from_tiles, to_tiles
from q2n.linalg.finite import all_finite

_PARTS = ("trellis", "suh", "svh")
_NAMED: tuple[CodebookName, ...] = ("mcg", "mul1")
"""Codebooks that have a tensor. Its number is never read."""
_VERSION = "1.4.1"
"""The release of exllamav3 whose sources the layout is from."""


class EXL3Codec(PackedCodec[CodebookName]):
    """The layout of exllamav3; the description is the codebook."""

    name = "exl3"

    def scale_dtype(self, model_dtype: torch.dtype) -> torch.dtype:
        return torch.float16

    def holds(self, storage: StorageSpec) -> bool:
        return storage.kind == EXL3Linear.kind and super().holds(storage)

    def encode(
        self, name: str, layer: QuantizedLinear, dtype: torch.dtype
    ) -> dict[str, Shaped[Tensor, "..."]]:
        if not isinstance(layer, EXL3Linear):
            raise InputError(
                f"{self.name} cannot hold {name}: its representation is {layer.kind!r}, and the "
                "format has its own trellis codes only; use --method exl3, or --format native"
            )
        rows, columns = layer.codes.shape
        parts = {
            "trellis": pack_trellis(layer.codes.T, layer.bits),
            "suh": pad(layer.suh, (0, columns - len(layer.suh))),
            "svh": pad(layer.svh, (0, rows - len(layer.svh))),
        }
        if layer.codebook in _NAMED:
            number = torch.tensor(MULTIPLIERS[layer.codebook], dtype=torch.uint32)
            parts[layer.codebook] = number.view(torch.int32)
        return parts

    def decode(
        self,
        name: str,
        parts: Mapping[str, Shaped[Tensor, "..."]],
        description: CodebookName,
    ) -> Float[Tensor, "out in"]:
        _require_layout(name, parts)
        bits = parts["trellis"].shape[2] // TILE
        return EXL3Linear(
            codes=unpack_trellis(parts["trellis"]).T.contiguous(),
            suh=parts["suh"],
            svh=parts["svh"],
            bits=bits,
            codebook=description,
        ).dequantize()

    def unpadded(
        self, weight: Float[Tensor, "out in"], shape: tuple[int, ...]
    ) -> Float[Tensor, "rows columns"]:
        rows, columns = shape
        fits = weight.shape == (padded(rows), padded(columns))
        return weight[:rows, :columns] if fits else weight


def pack_trellis(
    codes: UInt8[Tensor, "in out"], bits: int
) -> Int16[Tensor, "tiles_in tiles_out words"]:
    """The codes of a weight, [in, out], as they lie in the file."""
    words = pack(to_tiles(codes).flip(-1).contiguous(), bits).flip(-1).contiguous()
    return words.view(torch.int16)


def unpack_trellis(trellis: Int16[Tensor, "tiles_in tiles_out words"]) -> UInt8[Tensor, "in out"]:
    """Inverse of `pack_trellis`."""
    words = trellis.contiguous().view(torch.int32).flip(-1).contiguous()
    return from_tiles(unpack(words, trellis.shape[2] // TILE, WEIGHTS).flip(-1))


def _require_layout(name: str, parts: Mapping[str, Shaped[Tensor, "..."]]) -> None:
    """
    Raises:
        InputError: a tensor is missing, or is not what the others make of it.
    """
    missing = [part for part in _PARTS if part not in parts]
    if missing:
        raise InputError(f"tensor {name}.{missing[0]} is missing; fetch the checkpoint again")
    trellis, suh, svh = (parts[part] for part in _PARTS)
    rows, columns = svh.numel(), suh.numel()
    bits, rest = divmod(trellis.shape[-1] if trellis.ndim else 0, TILE)
    fits = (
        trellis.dtype == torch.int16
        and trellis.shape[:-1] == (columns // TILE, rows // TILE)
        and (rest, rows % BLOCK, columns % BLOCK) == (0, 0, 0)
        and 1 <= bits <= 8
    )
    if not fits:
        raise InputError(
            f"tensor {name}.trellis ({trellis.dtype}, {tuple(trellis.shape)}) is no trellis of "
            f"{columns} inputs and {rows} outputs; fetch the checkpoint again"
        )
    for part in ("suh", "svh"):
        if parts[part].dtype != torch.float16 or not all_finite(parts[part]):
            raise InputError(
                f"tensor {name}.{part} has NaN, Inf or no float16 numbers; fetch the checkpoint "
                "again"
            )


class EXL3Entry(PackedEntry[CodebookName]):
    """The tensors say it all; config.json names the format and the mean of the bits."""

    quant_method = "exl3"
    config_copy = "quantization_config.json"

    def check_model(self, model: nn.Module) -> None:
        assert isinstance(model, PreTrainedModel)
        require_text_alone("exl3", model)

    def quantization_config(
        self,
        layers: Mapping[str, StoredLayer],
        modules: Mapping[str, str],
        copied: Sequence[str] = (),
    ) -> dict[str, Any]:
        sizes = [layer.shape[0] * layer.shape[1] for layer in layers.values()]
        bits = [layer.metadata["bits"] for layer in layers.values()]
        mean = sum(b * n for b, n in zip(bits, sizes, strict=True)) / sum(sizes)
        return {
            "quant_method": self.quant_method,
            "version": _VERSION,
            "bits": round(mean, 2),
            "head_bits": 16,
            "out_scales": "auto",
            "codebook": next(layer.metadata["codebook"] for layer in layers.values()),
        }

    def completed(self, config: dict[str, Any]) -> dict[str, Any]:
        return with_older_names(config)

    def packed_layers(
        self, keys: Iterable[str], config: Mapping[str, Any]
    ) -> dict[str, PackedLayer[CodebookName]]:
        ordered = list(keys)
        known, last = set(ordered), f".{_PARTS[0]}"
        modules = [key.removesuffix(last) for key in ordered if key.endswith(last)]
        return {module: _described(module, known) for module in modules}

    def loading_example(self, directory: Path) -> str:
        return (
            "# pip install exllamav3 (an NVIDIA GPU)\n"
            "from exllamav3 import Config, Model\n"
            "\n"
            f"model = Model.from_config(Config.from_directory({str(directory)!r}))\n"
            "model.load()\n"
        )


def _described(module: str, known: set[str]) -> PackedLayer[CodebookName]:
    present = [part for part in (*_PARTS, *_NAMED) if f"{module}.{part}" in known]
    codebook: CodebookName = next((name for name in _NAMED if name in present), "3inst")
    return PackedLayer(parts=tuple(present), description=codebook)
