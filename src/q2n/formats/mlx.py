"""MLX: what mlx-lm, and the programs built on it, run on Apple's chips.

For a weight [N, K] in groups of g = 32, 64 or 128 inputs, G = K / g, and b bits:

    weight   uint32 [N, K b / 32]   codes, one little-endian bitstream per row
    scales   [N, G], the model's dtype (float16 in a float32 model)
    biases   [N, G], the same

w = scale * code + bias: a uniform grid with bias = -scale * zero. Only the bias is rounded: not at
all on a symmetric grid, whose zero point is a power of two, and on an asymmetric one of 8 bits by
up to half a step in bfloat16, for the product of a scale and a zero point has 16 bits there.

mlx-lm takes every module that has scales for quantized, embeddings too, and multiplies with these
where the model's configuration ties the head to them. `quantization` in config.json says the grid
of most modules, and that of any other one under its name. Settings of the rotary embedding are
looked for under the names of older configurations (older_names.py). (mlx.core.quantize;
mlx_lm/utils.py.)
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from transformers import PreTrainedModel

from q2n.errors import InputError
from q2n.formats.mlx_config import rotary_problem
from q2n.formats.model_checks import require_text_alone
from q2n.formats.older_names import with_older_names
from q2n.formats.packing import WORD, pack, unpack
from q2n.formats.stored import StoredLayer
from q2n.formats.table_grid import WIDTHS, TableGrid
from q2n.formats.uniform import Scheme, UniformCodec, UniformEntry, require_tensors, stored_scale
from q2n.layers.quantized import QuantizedLinear
from q2n.linalg.groups import by_column

BITS = (2, 3, 4, 5, 6, 8)
GROUP_SIZES = (32, 64, 128)
_LISTED_BITS, _SIZES = (", ".join(map(str, values)) for values in (BITS, GROUP_SIZES))


class MLX(UniformCodec):
    """Codes as one bitstream per row, a scale and a bias per group."""

    name = "mlx"
    parts = ("scales", "biases", "weight")

    def check_grid(self, name: str, shape: tuple[int, int], *, bits: int, group_size: int) -> None:
        if bits not in BITS:
            raise InputError(f"{self.name} holds {_LISTED_BITS} bits, not {bits} ({name})")
        if group_size not in GROUP_SIZES:
            raise InputError(
                f"{self.name} has groups of {_SIZES} inputs, not of {group_size} ({name}); "
                "choose one of these for --group-size (--runtime mlx does)"
            )
        if shape[1] % group_size:
            raise InputError(
                f"{self.name} has no short last group: {name} has {shape[1]} inputs, which groups "
                f"of {group_size} do not divide; choose another of {_SIZES} for --group-size, "
                f"or leave the layer out with --ignore"
            )

    def encode(
        self, name: str, layer: QuantizedLinear, dtype: torch.dtype
    ) -> dict[str, Shaped[Tensor, "..."]]:
        uniform, stored = self.uniform(name, layer), self.scale_dtype(dtype)
        scale = stored_scale(name, uniform.scale, stored)
        bias = stored_scale(name, -scale.float() * uniform.zero, stored)
        words = pack(uniform.codes, uniform.bits)
        return {"weight": words.view(torch.uint32), "scales": scale, "biases": bias}

    def decode(
        self, name: str, parts: Mapping[str, Shaped[Tensor, "..."]], description: Scheme
    ) -> Float[Tensor, "out in"]:
        bits, size = description.bits, description.group_size
        words = parts.get("weight", torch.empty(0))
        if words.dtype == torch.uint32:
            words = words.view(torch.int32)
        rows, columns = _shape(words, bits)
        grid = ((rows, description.groups(columns)), True)
        require_tensors(
            name,
            {**parts, "weight": words},
            {"weight": ((rows, columns * bits // WORD), False), "scales": grid, "biases": grid},
        )
        codes = unpack(words, bits, columns).float()
        scale, bias = parts["scales"].float(), parts["biases"].float()
        return by_column(scale, size, columns) * codes + by_column(bias, size, columns)


def _shape(words: Shaped[Tensor, "..."], bits: int) -> tuple[int, int]:
    """Of the weight: its rows fill whole words."""
    rows, count = (0, 0, *words.shape)[-2:]
    return rows, count * WORD // bits


def _described(group_size: int, bits: int) -> dict[str, Any]:
    return {"group_size": group_size, "bits": bits}


class MLXEntry(UniformEntry):
    """The grids, as mlx-lm writes them: without `quant_method`, so that transformers refuses the
    folder; a method that it does not know would make it load arbitrary weights."""

    codec = MLX
    quant_method = "mlx"
    library = "mlx"
    outside_bits = WIDTHS

    def check_model(self, model: nn.Module) -> None:
        assert isinstance(model, PreTrainedModel)
        require_text_alone(self.codec.name, model)
        if problem := rotary_problem(model.config):
            raise InputError(f"mlx-lm cannot run this model: {problem}; use another --format")

    def check_table(self, name: str, shape: tuple[int, int], grid: TableGrid) -> None:
        if grid.group_size(shape[1]) not in GROUP_SIZES:
            raise InputError(
                f"{self.codec.name} has groups of {GROUP_SIZES} columns, and none of them divides "
                f"the {shape[1]} of {name}; leave out --outside-bits"
            )

    def table_dtype(self, model_dtype: torch.dtype) -> torch.dtype:
        return self.codec().scale_dtype(model_dtype)

    def bits_of_group(self, grid: TableGrid, model_dtype: torch.dtype) -> int:
        return 2 * 8 * self.table_dtype(model_dtype).itemsize

    def quantization_config(
        self,
        layers: Mapping[str, StoredLayer],
        modules: Mapping[str, str],
        copied: Sequence[str] = (),
    ) -> dict[str, Any]:
        grids = {
            modules[name]: (x.metadata["group_size"], x.metadata["bits"])
            for name, x in layers.items()
        }
        ((most, _),) = Counter(grids.values()).most_common(1)
        own = {name: _described(*grid) for name, grid in grids.items() if grid != most}
        return {**_described(*most), "mode": "affine", **own}

    def completed(self, config: dict[str, Any]) -> dict[str, Any]:
        return {**with_older_names(config), "quantization": config["quantization_config"]}

    def describes(self, quantization: Mapping[str, Any]) -> bool:
        return {"group_size", "bits"} <= quantization.keys() and "quant_method" not in quantization

    def described_scheme(self, config: Mapping[str, Any]) -> Scheme:
        if config.get("mode", "affine") != "affine":
            raise InputError(f"MLX's mode {config['mode']!r} is not read here; use mlx-lm")
        return Scheme(bits=config["bits"], group_size=config["group_size"], symmetric=False)

    def own_scheme(self, module: str, config: Mapping[str, Any]) -> Scheme | None:
        own = config.get(module)
        return self.described_scheme(own) if isinstance(own, dict) else None

    def loading_example(self, directory: Path) -> str:
        return (
            "# pip install mlx-lm\n"
            "from mlx_lm import generate, load\n"
            "\n"
            f"model, tokenizer = load({str(directory)!r})\n"
            'print(generate(model, tokenizer, "The capital of France is"))\n'
        )
