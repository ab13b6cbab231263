"""In which types a GGUF file holds what no method quantizes.

embeddings, head    the type that is asked for (--gguf-outside), if whole blocks fill their rows
norms, biases       F32: llama.cpp takes nothing else
routers             F32, as its converter writes them: they choose experts
other linears       the type that is asked for if it is a floating-point one, else F16, or BF16
                    in a model of bfloat16
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from q2n.formats.gguf.tensor_types import BF16, F16, F32, FLOATS, TENSOR_TYPES, TensorType, fitting

EMBEDDINGS = ("token_embd.weight", "output.weight")
"""Names in the file."""
_ROUTERS = ("ffn_gate_inp.weight", "ffn_gate_inp_shexp.weight")
"""How the names of those in the file end."""


@dataclass(frozen=True)
class Outside:
    """The types of one file."""

    wanted: str
    """For embeddings and head."""
    plain: TensorType
    """For linears, and for embeddings whose rows are not whole blocks of any type that would do."""

    @classmethod
    def of(cls, name: str, dtype: torch.dtype) -> "Outside":
        """For `--gguf-outside NAME` and a model of `dtype`."""
        wanted = TENSOR_TYPES[name]
        plain = BF16 if dtype == torch.bfloat16 else F16
        return cls(name, wanted if wanted in FLOATS else plain)

    def kind(self, name: str, shape: tuple[int, ...]) -> TensorType:
        """The type of a tensor that is called so in the file."""
        if len(shape) == 1 or name.endswith(_ROUTERS):
            return F32
        return fitting(self.wanted, shape[-1], self.plain) if name in EMBEDDINGS else self.plain

    def said(self, shapes: Mapping[str, tuple[int, ...]], *, routers: bool) -> str:
        """In one sentence, for a file that holds these embeddings, and routers or none."""
        kinds = {self.kind(name, shape).name for name, shape in shapes.items()}
        exact = "norms, biases and what chooses among experts" if routers else "norms and biases"
        return (
            f"Embeddings and output head are in {', '.join(sorted(kinds))}, other linears that are "
            f"not quantized in {self.plain.name}, {exact} in F32."
        )

    def notes(self, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
        """What to say of embeddings that `wanted` does not fit."""
        wanted = TENSOR_TYPES[self.wanted]
        return [
            f"{name} is stored in {self.kind(name, shape).name}: blocks of {wanted.columns} "
            f"({wanted.name}) do not fill its rows of {shape[-1]}"
            for name, shape in shapes.items()
            if self.kind(name, shape) != wanted
        ]
