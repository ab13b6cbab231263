"""What has to run beside the weights of a rotated or activation-quantized model.

`RuntimeParts` are plain data: which modules (by patterns of their names) have their input rotated
or rounded, which attention has its cache rounded. They travel through JSON, so a checkpoint can
carry them, and `attach` puts them on any model with modules of these names, whatever class its
linears are. Rotations and quantizers can be attached apart: weights are quantized under the
rotations alone.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Self

from torch import Tensor, nn

from q2n.errors import InputError
from q2n.grids.per_token import TokenGrid
from q2n.linalg.kronecker import KroneckerMatrix
from q2n.linalg.kronecker_described import require_matrix
from q2n.transforms.kv_cache import round_cache


@dataclass(frozen=True, kw_only=True, eq=False)
class RuntimeParts:
    """Patterns (`model.layers.*.mlp.down_proj`) of module names and what happens there."""

    rotated: Mapping[str, KroneckerMatrix] = field(default_factory=dict)
    """Linears whose input is rotated."""
    rounded: tuple[str, ...] = ()
    """Linears whose input is rounded, after the rotation."""
    activations: TokenGrid | None = None
    """How; None: not at all."""
    attention: str = ""
    """Attention modules."""
    keys: KroneckerMatrix | None = None
    """Of each head's queries and keys, where keys are rounded."""
    cache: TokenGrid | None = None
    """How keys and values are rounded; None: not at all."""

    @property
    def none(self) -> bool:
        """Whether weights are all there is."""
        return not self.rotated and self.activations is None and self.cache is None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "rotated": {pattern: value.to_json() for pattern, value in self.rotated.items()},
            "rounded": list(self.rounded),
            "activations": self.activations and asdict(self.activations),
            "attention": self.attention,
            "keys": self.keys and self.keys.to_json(),
            "cache": self.cache and asdict(self.cache),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Inverse of `to_json`.

        Raises:
            ValueError, LookupError, TypeError, AttributeError: nothing is described so.
        """
        for matrix in (*values["rotated"].values(), values["keys"]):
            if matrix:
                require_matrix(matrix)
        return cls(
            rotated={
                pattern: KroneckerMatrix.from_json(value)
                for pattern, value in values["rotated"].items()
            },
            rounded=tuple(values["rounded"]),
            activations=values["activations"] and TokenGrid(**values["activations"]),
            attention=values["attention"],
            keys=values["keys"] and KroneckerMatrix.from_json(values["keys"]),
            cache=values["cache"] and TokenGrid(**values["cache"]),
        )


def attach(model: nn.Module, parts: RuntimeParts) -> None:
    """Attach all parts to a transformers model; call once per model.

    Raises:
        InputError: a pattern fits no module.
    """
    attach_rotations(model, parts)
    attach_quantizers(model, parts)


def attach_described(model: nn.Module, description: Any) -> None:
    """`attach` what `RuntimeParts.to_json` gave. Raises as `attach`."""
    attach(model, RuntimeParts.from_json(description))


def attach_rotations(model: nn.Module, parts: RuntimeParts) -> None:
    """The rotations without which the weights mean nothing. Raises as `attach`."""
    for pattern, rotation in parts.rotated.items():
        for module in _matching(model, pattern):
            if getattr(module, "in_features", rotation.size) != rotation.size:
                raise InputError(f"a rotation of {rotation.size} does not fit {pattern!r}")
            module.register_forward_pre_hook(_RotateInput(rotation))


def attach_quantizers(model: nn.Module, parts: RuntimeParts) -> None:
    """What rounds activations and the cache; after the rotations. Raises as `attach`."""
    if parts.activations is not None:
        for pattern in parts.rounded:
            for module in _matching(model, pattern):
                width = getattr(module, "in_features", None)
                if width is not None:
                    parts.activations.check(width, pattern)
                module.register_forward_pre_hook(_RoundInput(parts.activations))
    if parts.cache is not None:
        for module in _matching(model, parts.attention):
            _require_heads(module, parts.cache, parts.keys)
        round_cache(model, _matching(model, parts.attention), parts.cache, parts.keys)


def _require_heads(attention: nn.Module, grid: TokenGrid, keys: KroneckerMatrix | None) -> None:
    width = getattr(attention, "head_dim", None)
    if isinstance(width, int):
        grid.check(width, "a head")
        if keys is not None and keys.size != width:
            raise InputError(f"a rotation of {keys.size} does not fit heads of {width} channels")


class _RotateInput:
    """A hook; its matrices follow the input from device to device."""

    def __init__(self, rotation: KroneckerMatrix):
        self.rotation = rotation

    def __call__(self, _: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        self.rotation = self.rotation.ready_for(args[0])
        return self.rotation.apply(args[0]), *args[1:]


class _RoundInput:
    def __init__(self, grid: TokenGrid):
        self.grid = grid

    def __call__(self, _: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return self.grid.quantize(args[0]), *args[1:]


def _matching(model: nn.Module, pattern: str) -> Iterator[nn.Module]:
    modules = [module for name, module in model.named_modules() if fnmatchcase(name, pattern)]
    if not modules:
        raise InputError(f"{type(model).__name__} has no module {pattern!r} to attach to")
    yield from modules
