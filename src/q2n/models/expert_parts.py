"""Which part of a fused parameter belongs to which expert.

transformers says of a class of fused experts how its parameters lie (`use_experts_implementation`):
`is_transposed` [experts, in, out], else [experts, out, in]; `is_concatenated` gate rows first, then
up rows, else one of each in turn; `has_gate` `gate_up_proj`, else `up_proj` alone; `has_bias` a
vector of outputs beside each. Any other 3-D parameter holds no experts that are known here.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from jaxtyping import Shaped
from torch import Tensor, nn

_FACTS = (
    "has_gate",
    "has_bias",
    "has_post_expert_norm",
    "is_transposed",
    "is_concatenated",
    "num_experts",
    "_apply_gate",
)
"""Attributes of a decorated module."""


@dataclass(frozen=True)
class ExpertPart:
    """One expert's matrix, or its bias, within a fused parameter."""

    parameter: str
    """Name of the fused parameter in the module of experts."""
    expert: int
    place: int
    """Which of the `of` matrices that share the output dimension."""
    of: int
    concatenated: bool
    transposed: bool

    def cut(self, fused: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
        """The matrix as [out, in], or the bias; a view."""
        return self.within(fused[self.expert])

    def within(self, matrix: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
        """The same of what the parameter holds of this expert."""
        if self.transposed and matrix.ndim == 2:
            matrix = matrix.T
        if self.of == 1:
            return matrix
        if self.concatenated:
            return matrix.chunk(self.of)[self.place]
        return matrix[self.place :: self.of]


def is_fused(module: nn.Module) -> bool:
    """Whether a module holds experts just as transformers' decorator describes."""
    if not all(hasattr(module, fact) for fact in _FACTS):
        return False
    own = {name for name, _ in module.named_parameters(recurse=False)}
    return own == {f"{name}{tail}" for name in _fused(module) for tail in _tails(module)}


def _fused(module: Any) -> dict[str, tuple[str, ...]]:
    """Name of a fused parameter -> the projections in it."""
    first = ("gate_proj", "up_proj") if module.has_gate else ("up_proj",)
    return {"gate_up_proj" if module.has_gate else "up_proj": first, "down_proj": ("down_proj",)}


def _tails(module: Any) -> dict[str, str]:
    """What is added to the name of a parameter of weights or biases -> which of the two."""
    return {"": "weight", "_bias": "bias"} if module.has_bias else {"": "weight"}


def expert_parts(module: Any) -> dict[str, ExpertPart]:
    """Name within a module that `is_fused`, e.g. "3.gate_proj.weight", -> part; expert by expert,
    a weight before its bias."""
    return {
        f"{expert}.{projection}.{kind}": ExpertPart(
            parameter=f"{name}{tail}",
            expert=expert,
            place=place,
            of=len(projections),
            concatenated=module.is_concatenated,
            transposed=module.is_transposed,
        )
        for expert in range(module.num_experts)
        for name, projections in _fused(module).items()
        for place, projection in enumerate(projections)
        for tail, kind in _tails(module).items()
    }


def parts_by_parameter(
    mixtures: Iterable[tuple[str, nn.Module]],
) -> dict[str, dict[str, ExpertPart]]:
    """Name of a fused parameter -> the full names of the tensors in it, and where each lies.

    Args:
        mixtures: names and modules that are fused, or were (experts.py).
    """
    fused: dict[str, dict[str, ExpertPart]] = {}
    for prefix, module in mixtures:
        for name, part in expert_parts(module).items():
            fused.setdefault(f"{prefix}.{part.parameter}", {})[f"{prefix}.{name}"] = part
    return fused


def expert_total(parts: Iterable[ExpertPart]) -> int:
    """How many experts the whole of a fused parameter has."""
    return 1 + max(part.expert for part in parts)


def single_keys(fused: Mapping[str, Mapping[str, ExpertPart]]) -> dict[str, str]:
    """What files would call single matrices that they hold fused (`ModelSource.fused`), by the
    model's names: beside the fused tensor, "..experts.3.up_proj.weight"."""
    return {
        name: ".".join((key.rpartition(".")[0], *name.split(".")[-3:]))
        for key, names in fused.items()
        for name in names
    }
