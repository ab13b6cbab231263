"""The files of a quantized checkpoint, read as those of a plain one.

What the files hold in place of the weight of a quantized linear becomes that weight again, one
linear at a time and when it is asked for: dequantized in float32 and rounded once to the dtype of
the model. So whatever reads plain checkpoints reads these too, a block at a time if it wants.

The way back unpacks with the inverse of our own packer and shares no code with the packed-weight
readers of transformers, so agreement between the two says something.
"""

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Float64, Shaped
from torch import Tensor
from transformers import PreTrainedModel

from q2n.errors import InputError
from q2n.formats.codec import PackedCodec
from q2n.formats.hf_entry import PackedEntry, refuse_undescribed
from q2n.models.checkpoint_files import StoredTensors
from q2n.models.loading_plan import fused_parts
from q2n.models.one_pass import NAMES
from q2n.models.tensor_names import names_in_model


class PackedFiles(StoredTensors):
    """Tensors by their names in the files; the dense weight of a quantized linear, and those of
    experts, by the name that the model gives it.

    Args:
        model: its weights may be on the meta device.
        dtype: of the dense weights.
        quantization: `quantization_config` of config.json.

    Raises:
        InputError: as `entry.packed_layers`; a tensor of a quantized linear that the quantization
            config does not describe.
    """

    def __init__(
        self,
        files: StoredTensors,
        model: PreTrainedModel,
        dtype: torch.dtype,
        entry: PackedEntry[Any],
        codec: PackedCodec[Any],
        quantization: Mapping[str, Any],
    ):
        self._files, self._dtype, self._codec = files, dtype, codec
        names = names_in_model(model, files.file_of)
        self._key_of = {name: key for key, name in names.items()}
        layers = entry.packed_layers(self._key_of, quantization)
        self._layers = {f"{module}.weight": layer for module, layer in layers.items()}
        self._shapes = {
            name: tuple(tensor.shape)
            for name, tensor in model.state_dict().items()
            if name in self._layers
        }
        packed = {key for name in self._layers for key in self._parts(name).values()}
        for key, name in names.items():
            module, _, part = name.rpartition(".")
            if module in layers and key not in packed and part != "bias":
                refuse_undescribed(key)
        self.folder = files.folder
        single = {name for parts in fused_parts(model).values() for name in parts}
        self._plain = {
            names[key] if names[key] in single else key: key
            for key in files.file_of
            if key not in packed
        }
        """Name here -> name in the files of what is not packed. Experts beside packed ones have
        the model's names too: rules that merge all experts of a mixture would find a part."""
        self.file_of = {name: self._file(name) for name in self._layers} | {
            name: files.file_of[key] for name, key in self._plain.items()
        }

    @property
    def packed(self) -> list[str]:
        """The quantized linears and tables, by the names that the model gives them."""
        return [name.removesuffix(".weight") for name in self._layers]

    def shape(self, key: str) -> tuple[int, ...]:
        if key not in self._layers:
            return self._files.shape(self._plain[key])
        return self._shapes[key] if key in self._shapes else tuple(self.tensor(key).shape)

    def dtype(self, key: str) -> str:
        packed = key in self._layers
        return NAMES[self._dtype] if packed else self._files.dtype(self._plain[key])

    def size_bytes(self, key: str) -> int:
        if key not in self._layers:
            return self._files.size_bytes(self._plain[key])
        return prod(self.shape(key)) * self._dtype.itemsize

    def digest_and_extremes(self, file: Path) -> tuple[bytes, dict[str, Float64[Tensor, " 2"]]]:
        digest, extremes = self._files.digest_and_extremes(file)
        plain = {name: key for name, key in self._plain.items() if key in extremes}
        return digest, {name: extremes[key] for name, key in plain.items()}

    def tensor(self, key: str) -> Shaped[Tensor, "..."]:
        return self._dense(key) if key in self._layers else self._files.tensor(self._plain[key])

    def _dense(self, name: str) -> Float[Tensor, "out in"]:
        module, described = name.removesuffix(".weight"), self._layers[name].description
        parts = {part: self._files.tensor(key) for part, key in self._parts(name).items()}
        weight = self._codec.decode(module, parts, described)
        expected = self._shapes.get(name, weight.shape)
        weight = self._codec.unpadded(weight, expected)
        if weight.shape != expected:
            raise InputError(
                f"{self._file(name)}: {module!r} has a weight of shape {tuple(weight.shape)}, and "
                f"config.json asks for {tuple(expected)}; the two belong to different models"
            )
        return weight.to(self._dtype)

    def _parts(self, name: str) -> dict[str, str]:
        """What the files hold in place of a weight: name of the part -> name in the files."""
        module = name.removesuffix(".weight")
        named = {part: f"{module}.{part}" for part in self._layers[name].parts}
        return {part: self._key_of[x] for part, x in named.items() if x in self._key_of}

    def _file(self, name: str) -> Path:
        """Where the first part of a weight lies; the folder where none of them is there."""
        return next(map(self._files.file_of.__getitem__, self._parts(name).values()), self.folder)
