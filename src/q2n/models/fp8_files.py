"""Originals in FP8 (DeepSeek-V3, Qwen3's and MiniMax's "-FP8", Mistral's), read as dense weights.

Each linear holds numbers of 8 bits (float8_e4m3fn) and a factor for every block of them, usually
128 x 128; the last block of a row or column may be a part of one:

    W[i, j] = w[i, j] s[i // a, j // b],    weight [out, in], weight_scale_inv [out / a, in / b]

Mistral's have one factor a matrix, a block that is larger than any. The product is taken in
float32 and rounded once, to the model's own dtype. Embeddings, norms and routers are stored as in
any checkpoint. Factors of inputs (activation_scale) say how a runtime rounds them, and are left
out: here inputs stay as they are.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import ceil, prod
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from q2n.errors import InputError
from q2n.models.checkpoint_files import StoredTensors
from q2n.models.dense_files import DenseFiles, require_both
from q2n.option_types import shown

_EIGHT, _FACTORS, _OF_INPUTS = "F8_E4M3", "_scale_inv", "activation_scale"

Block = tuple[int, int]
"""Rows and columns that have one factor; no more than the matrix has are counted."""
_WHOLE: Block = (2**62, 2**62)


def fp8_reader(
    folder: Path, described: Mapping[str, Any]
) -> Callable[[StoredTensors, torch.dtype], DenseFiles]:
    """Reads the files of a folder whose quantization_config is `described`.

    Raises:
        InputError: it has factors of another kind.
    """
    block = described.get("weight_block_size")
    if block is None:
        return partial(FP8Files, block=_WHOLE)
    sizes = block if isinstance(block, list) else []
    if len(sizes) != 2 or not all(isinstance(x, int) and x > 0 for x in sizes):
        raise InputError(
            f"{folder} is in FP8 with the weight_block_size {shown(block)}, and only factors of "
            "blocks, as [128, 128], or of a matrix, null, are read; take the checkpoint in 16 bits"
        )
    return partial(FP8Files, block=(sizes[0], sizes[1]))


class FP8Files(DenseFiles):
    """The tensors of such files by their names, the linears dense in `dtype`.

    Raises:
        InputError: a weight in 8 bits has no factors, or not as many as blocks.
    """

    kind: ClassVar[str] = "FP8"

    def __init__(self, files: StoredTensors, dtype: torch.dtype, *, block: Block):
        factors = {key for key in files.file_of if key.endswith(_FACTORS)}
        made = {key.removesuffix(_FACTORS): key for key in factors}
        of_inputs = {f"{key.removesuffix('weight')}{_OF_INPUTS}" for key in made}
        self._block = block
        for key in {*made} | {x for x in files.file_of if files.dtype(x) == _EIGHT}:
            _check(files, key, block)
        super().__init__(files, dtype, made, factors | of_inputs)

    def dense_shape(self, key: str) -> tuple[int, ...]:
        return self._files.shape(key)

    def dense(self, key: str) -> Float[Tensor, "out in"]:
        weight, factors = self._files.tensor(key), self._files.tensor(self._made[key])
        factors = factors.float().view(grid(weight.shape, self._block))
        return dense(weight, factors, self._block).to(self._dtype)


def _check(files: StoredTensors, key: str, block: Block) -> None:
    """A weight and its factors, from the headers."""
    factors = key + _FACTORS
    require_both(files, key, factors)
    shape, found = files.shape(key), files.shape(factors)
    expected = grid(shape, block)
    alike = prod(found) == 1 if block == _WHOLE else found == expected
    if len(shape) != 2 or not alike or files.dtype(key) != _EIGHT:
        of = "the matrix" if block == _WHOLE else f"{block}"
        raise InputError(
            f"{files.folder}: {key!r} {shape} in {files.dtype(key)} with factors {found}: a "
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
