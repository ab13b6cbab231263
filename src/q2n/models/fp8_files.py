"""Originals in FP8 (DeepSeek-V3, Qwen3's and MiniMax's "-FP8", Mistral's), read as dense weights.

Each linear holds numbers of 8 bits (float8_e4m3fn) and a factor for every block of them, usually
128 x 128; the last block of a row or column may be a part of one:

    W[i, j] = w[i, j] s[i // a, j // b],    weight [out, in], weight_scale_inv [out / a, in / b]

Mistral's have one factor a matrix, a block that is larger than any. The product is taken in
float32 and rounded once, to the model's own dtype. Embeddings, norms and routers are stored as in
any checkpoint. Factors of inputs (activation_scale) say how a runtime rounds them, and are left
out: here inputs stay as they are.
"""

from collections.abc import Sequence
from math import ceil, prod
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Float64, Shaped
from torch import Tensor
from transformers import PretrainedConfig

from q2n.errors import InputError
from q2n.models.checkpoint_files import StoredTensors
from q2n.models.config_file import config_values, read_config
from q2n.models.one_pass import NAMES
from q2n.option_types import shown

METHOD = "fp8"
"""What config.json calls it."""
_EIGHT, _FACTORS, _OF_INPUTS = "F8_E4M3", "_scale_inv", "activation_scale"

Block = tuple[int, int]
"""Rows and columns that have one factor; no more than the matrix has are counted."""
_WHOLE: Block = (2**62, 2**62)


def original_config(folder: Path, trust_remote_code: bool = False) -> PretrainedConfig:
    """The configuration of an original, without what it says of FP8.

    Raises:
        InputError: as `fp8_block` and `read_config`.
    """
    block = fp8_block(folder)
    config = read_config(folder, trust_remote_code)
    if block is not None:
        del config.quantization_config
    return config


def fp8_block(folder: Path) -> Block | None:
    """The blocks of an original in FP8; None of one in 16 or 32 bits.

    Raises:
        InputError: the checkpoint is quantized in another way.
    """
    described: Any = config_values(folder).get("quantization_config")
    if described is None:
        return None
    method = described.get("quant_method") if isinstance(described, dict) else None
    if method != METHOD:
        how = f" ({shown(method)})" if method else ""
        raise InputError(
            f"{folder} is quantized already{how}: config.json has a quantization_config; quantize "
            "the original checkpoint"
        )
    block = described.get("weight_block_size")
    if block is None:
        return _WHOLE
    sizes = block if isinstance(block, list) else []
    if len(sizes) != 2 or not all(isinstance(x, int) and x > 0 for x in sizes):
        raise InputError(
            f"{folder} is in FP8 with the weight_block_size {shown(block)}, and only factors of "
            "blocks, as [128, 128], or of a matrix, null, are read; take the checkpoint in 16 bits"
        )
    return sizes[0], sizes[1]


class FP8Files(StoredTensors):
    """The tensors of such files by their names, the linears dense in `dtype`.

    Raises:
        InputError: a weight in 8 bits has no factors, or not as many as blocks.
    """

    def __init__(self, files: StoredTensors, block: Block, dtype: torch.dtype):
        self._files, self._block, self._dtype = files, block, dtype
        self.folder = files.folder
        factors = {key for key in files.file_of if key.endswith(_FACTORS)}
        self._factors = {key.removesuffix(_FACTORS): key for key in factors}
        left_out = factors | {f"{key.removesuffix('weight')}{_OF_INPUTS}" for key in self._factors}
        self.file_of = {key: file for key, file in files.file_of.items() if key not in left_out}
        for key in {*self._factors} | {x for x in self.file_of if files.dtype(x) == _EIGHT}:
            self._check(key)

    @property
    def files(self) -> set[Path]:
        return self._files.files

    def shape(self, key: str) -> tuple[int, ...]:
        return self._files.shape(key)

    def dtype(self, key: str) -> str:
        return NAMES[self._dtype] if key in self._factors else self._files.dtype(key)

    def size_bytes(self, key: str) -> int:
        size = self._files.size_bytes(key)
        return size * self._dtype.itemsize if key in self._factors else size

    def digest_and_extremes(self, file: Path) -> tuple[bytes, dict[str, Float64[Tensor, " 2"]]]:
        digest, extremes = self._files.digest_and_extremes(file)
        for key in extremes.keys() - self.file_of.keys():
            if not extremes[key].isfinite().all():
                raise InputError(f"{file}: tensor {key!r} has NaN or Inf; fetch it again")
        return digest, {key: pair for key, pair in extremes.items() if key in self.file_of}

    def tensor(self, key: str) -> Shaped[Tensor, "..."]:
        if key not in self._factors:
            return self._files.tensor(key)
        weight, factors = self._files.tensor(key), self._files.tensor(self._factors[key])
        factors = factors.float().view(grid(weight.shape, self._block))
        return dense(weight, factors, self._block).to(self._dtype)

    def entry(self, key: str, index: int) -> Shaped[Tensor, "..."]:
        return super().entry(key, index) if key in self._factors else self._files.entry(key, index)

    def _check(self, key: str) -> None:
        """A weight and its factors, from the headers."""
        files, factors = self._files, self._factors.get(key)
        if factors is None or key not in self.file_of:
            here, lacking = (key, f"{key}{_FACTORS}") if factors is None else (factors, key)
            raise InputError(
                f"{self.folder}: {here!r} has no {lacking!r} beside it; fetch the checkpoint again"
            )
        shape, found = files.shape(key), files.shape(factors)
        expected = grid(shape, self._block)
        alike = prod(found) == 1 if self._block == _WHOLE else found == expected
        if len(shape) != 2 or not alike or files.dtype(key) != _EIGHT:
            of = "the matrix" if self._block == _WHOLE else f"{self._block}"
            raise InputError(
                f"{self.folder}: {key!r} {shape} in {files.dtype(key)} with factors {found}: a "
                f"matrix in {_EIGHT} with {expected} was expected, one for {of}; fetch the "
                "checkpoint again"
            )


def grid(shape: Sequence[int], block: Block) -> tuple[int, ...]:
    """Factors of a matrix by rows and columns."""
    return tuple(ceil(n / size) for n, size in zip(shape, block, strict=False))


def dense(
    weight: Shaped[Tensor, "out in"], factors: Float[Tensor, "a b"], block: Block
) -> Float[Tensor, "out in"]:
    """`weight`, in 8 bits, times the factor of each of its blocks, in float32."""
    rows, columns = weight.shape
    across = factors.repeat_interleave(min(block[1], columns), 1)[:, :columns]
    return weight.float() * across.repeat_interleave(min(block[0], rows), 0)[:rows]
