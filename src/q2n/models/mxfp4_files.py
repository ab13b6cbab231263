"""Originals whose experts are in MXFP4 (gpt-oss), read as dense weights.

All experts' matrices of one kind lie in one tensor of codes of 4 bits, two a byte, the first in
the lower half, and one of exponents, one for 32 numbers of a row (OCP Microscaling Formats 1.0):

    W[e, j, i] = FP4[c[e, i, j]] 2^(s[e, i, j // 32] - 127)

    gate_up_proj_blocks [experts, out, in / 32, 16],  gate_up_proj_scales [experts, out, in / 32]

where the first bit of c is the sign and the others number 0, 1/2, 1, 3/2, 2, 3, 4, 6. The model
holds them the other way round, [experts, in, out]. All of these numbers are exact in bfloat16.
"""

from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Float, Float64, Shaped, UInt8
from torch import Tensor

from q2n.errors import InputError
from q2n.models.checkpoint_files import StoredTensors
from q2n.models.dense_files import DenseFiles, require_both

_CODES, _EXPONENTS = "_blocks", "_scales"
_BYTES, _BIAS, _NAN = 16, 127, 255
"""Of codes that have one exponent; what the exponents are above; the one that is no number."""
_HALF = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
FP4 = (*_HALF, *(-x for x in _HALF))
"""The number of each code."""


class MXFP4Files(DenseFiles):
    """The tensors of such files by their names, the experts dense in `dtype`.

    Raises:
        InputError: codes have no exponents, or not as many as there are blocks.
    """

    kind: ClassVar[str] = "MXFP4"

    def __init__(self, files: StoredTensors, dtype: torch.dtype):
        both = {key for key in files.file_of if key.endswith((_CODES, _EXPONENTS))}
        names = {key.removesuffix(_CODES).removesuffix(_EXPONENTS) for key in both}
        for name in sorted(names):
            _check(files, name)
        super().__init__(files, dtype, {name: name + _EXPONENTS for name in names}, both)

    def dense_shape(self, key: str) -> tuple[int, ...]:
        experts, rows, blocks = self._files.shape(key + _EXPONENTS)
        return experts, blocks * 2 * _BYTES, rows

    def dense(self, key: str) -> Float[Tensor, "experts columns rows"]:
        return torch.stack([self.entry(key, expert) for expert in range(self.shape(key)[0])])

    def entry(self, key: str, index: int) -> Shaped[Tensor, "..."]:
        if key not in self._made:
            return super().entry(key, index)
        codes, exponents = (self._files.entry(key + x, index) for x in (_CODES, _EXPONENTS))
        return dense(codes, exponents).to(self._dtype).T.contiguous()

    def digest_and_extremes(self, file: Path) -> tuple[bytes, dict[str, Float64[Tensor, " 2"]]]:
        """As of all files; of what is made, what its numbers are within."""
        digest, extremes = super().digest_and_extremes(file)
        made = {key: x for key, x in self._made.items() if self._files.file_of[x] == file}
        return digest, extremes | {key: self._within(x) for key, x in made.items()}

    def _within(self, key: str) -> Float64[Tensor, " 2"]:
        exponents = self._files.tensor(key)
        largest = int(exponents.max()) if exponents.numel() else 0
        if largest == _NAN:
            raise InputError(f"{self._files.file_of[key]}: tensor {key!r} has NaN; fetch it again")
        greatest = max(FP4) * 2.0 ** (largest - _BIAS)
        return torch.tensor([-greatest, greatest], dtype=torch.float64)


def _check(files: StoredTensors, name: str) -> None:
    """Codes and their exponents, from the headers."""
    require_both(files, name + _CODES, name + _EXPONENTS)
    codes, exponents = (files.shape(name + x) for x in (_CODES, _EXPONENTS))
    dtypes = {files.dtype(name + x) for x in (_CODES, _EXPONENTS)}
    if len(codes) != 4 or codes != (*exponents, _BYTES) or dtypes != {"U8"}:
        raise InputError(
            f"{files.folder}: {name + _CODES!r} {codes} with exponents {exponents} in "
            f"{', '.join(sorted(dtypes))}: [experts, out, in / 32, {_BYTES}] and [experts, out, "
            "in / 32] in U8 were expected; fetch the checkpoint again"
        )


def dense(
    codes: UInt8[Tensor, "out blocks 16"], exponents: UInt8[Tensor, "out blocks"]
) -> Float[Tensor, "out in"]:
    """One matrix in float32."""
    number = torch.tensor(FP4)
    pairs = torch.stack([codes & 15, codes >> 4], -1).int()
    scales = torch.ldexp(torch.ones(exponents.shape), exponents.int() - _BIAS)
    return (number[pairs].flatten(2) * scales[..., None]).flatten(1)
