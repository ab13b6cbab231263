"""Targets: the matrices to quantize, wherever a model keeps them.

A method sees `W` of shape [out, in]: rows are outputs, columns are inputs. Models store it as an
`nn.Linear` does, [out, in], or as GPT-2's `Conv1D` does, [in, out]. A target hides that: everything
else in the package reads and sets [out, in] and hooks `module`, which is called with the input.

Experts of a mixture are linears here, one by one (experts.py).

Small matrices stay in full precision: those with a side below 128, the usual group, that hold less
than 1 % of their block's weights: the coefficients between Gemma 3n's streams and the like, where
nothing is won and groups do not divide them. All experts of a mixture count together.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from math import prod

from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from q2n.errors import InputError
from q2n.models.experts import LAST, experts_in
from q2n.patterns import matches

_EXAMPLES = 3
"""Names that a message lists."""
_NARROW = 128
_SMALL_SHARE = 0.01


@dataclass(frozen=True, eq=False)
class Target(ABC):
    """One matrix to quantize."""

    name: str
    """Dotted, within the block or model in which the target was looked up."""
    module: nn.Module
    """What is called with the target's input: hooks go in front of it."""
    experts: int | None = None
    """Of a linear of an expert: how many experts its mixture has."""

    @property
    def parameter(self) -> str:
        """Name of the tensor that holds the weight: in the module tree and, with the name of the
        block before it, in the checkpoint."""
        return f"{self.name}.weight"

    @property
    def output(self) -> str:
        """Name of what its outputs go into: the sum of a mixture, of the last linears of all its
        experts; else they are its own."""
        mixture, _, projection = self.name.rsplit(".", 2) if self.experts else ("", "", "")
        return f"{mixture}.{LAST}" if projection == LAST else self.name

    @property
    @abstractmethod
    def transposed(self) -> bool:
        """Whether the tensor is stored as [in, out]."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """(out, in); known on the meta device too."""

    @abstractmethod
    def weight(self) -> Float[Tensor, "out in"]:
        """The current weight in float32. It may share memory with the parameter."""

    @abstractmethod
    def stored(self, weight: Float[Tensor, "out in"]) -> Float[Tensor, "rows columns"]:
        """A weight laid out as the parameter is; a view where one will do."""

    def set(self, weight: Float[Tensor, "out in"]) -> None:
        """Write a weight into the parameter, in the parameter's dtype."""
        self.module.get_parameter("weight").copy_(self.stored(weight))


class LinearTarget(Target):
    """The weight of an `nn.Linear`."""

    @property
    def transposed(self) -> bool:
        return False

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.module.get_parameter("weight").shape
        return rows, columns

    def weight(self) -> Float[Tensor, "out in"]:
        return self.module.get_parameter("weight").detach().float()

    def stored(self, weight: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
        return weight


class Conv1DTarget(Target):
    """The weight of a transformers `Conv1D` (GPT-2): `y = x W^T` with `W^T` stored."""

    @property
    def transposed(self) -> bool:
        return True

    @property
    def shape(self) -> tuple[int, int]:
        columns, rows = self.module.get_parameter("weight").shape
        return rows, columns

    def weight(self) -> Float[Tensor, "out in"]:
        return self.module.get_parameter("weight").detach().float().T.contiguous()

    def stored(self, weight: Float[Tensor, "out in"]) -> Float[Tensor, "in out"]:
        return weight.T


TARGETS: dict[type[nn.Module], type[Target]] = {nn.Linear: LinearTarget, Conv1D: Conv1DTarget}
"""The kinds of modules that hold a matrix to quantize, and how it is read and set."""
_SAME_PRODUCT = ("FalconLinear",)
"""Classes of transformers with a forward pass of their own that gives what `nn.Linear`'s does."""


def targets_in(root: nn.Module) -> dict[str, Target]:
    """Every matrix in a block or model that could be quantized, by name, in module order."""
    experts = {name: module.num_experts for name, module in experts_in(root)}
    return {
        name: kind(name, module, experts.get(name.rsplit(".", 2)[0]))
        for name, module in root.named_modules()
        for of, kind in TARGETS.items()
        if isinstance(module, of) and _is_product(module, of)
    }


def other_linears(root: nn.Module) -> list[str]:
    """Names of modules that hold a matrix as a linear does and compute something else with it
    (DeepSeek-V4's products by groups): no targets."""
    return [
        name
        for name, module in root.named_modules()
        for of in TARGETS
        if isinstance(module, of) and not _is_product(module, of)
    ]


def _is_product(module: nn.Module, of: type[nn.Module]) -> bool:
    own = type(module)
    return own.forward is of.forward or own.__name__ in _SAME_PRODUCT


def small_targets(blocks: Mapping[str, nn.Module]) -> set[str]:
    """Full names of the targets that are narrow and hold next to nothing of their block.

    Args:
        blocks: by full name.
    """
    small = set()
    for prefix, block in blocks.items():
        most = _SMALL_SHARE * sum(parameter.numel() for parameter in block.parameters())
        small |= {
            f"{prefix}.{name}"
            for name, target in targets_in(block).items()
            if min(target.shape) < _NARROW and prod(target.shape) * (target.experts or 1) < most
        }
    return small


def matrix_holders(root: nn.Module) -> list[str]:
    """Names of the classes of modules that hold matrices, sorted."""
    return sorted(
        {
            type(module).__name__
            for module in root.modules()
            if any(parameter.ndim == 2 for parameter in module.parameters(recurse=False))
        }
    )


@dataclass(frozen=True)
class LayerFilter:
    """Which layers are quantized; the others keep their weights.

    Patterns are matched against full names (patterns.py). A layer that `ignore` names stays in full
    precision even if `only` names it too.
    """

    ignore: tuple[str, ...] = ()
    """Patterns of layers that stay in full precision."""
    only: tuple[str, ...] = ()
    """Patterns of the only layers that are quantized; none means all."""

    def keeps(self, name: str, small: Collection[str] = ()) -> bool:
        """Whether the layer of this full name is to be quantized; a small one only if `only`
        names it."""
        if self.only:
            asked = any(matches(pattern, name) for pattern in self.only)
        else:
            asked = name not in small
        return asked and not self.ignores(name)

    def ignores(self, name: str) -> bool:
        """Whether `ignore` names the layer or module of this full name."""
        return any(matches(pattern, name) for pattern in self.ignore)

    def check(
        self, names: Iterable[str], small: Collection[str] = (), also: Iterable[str] = ()
    ) -> None:
        """Refuse patterns that do not fit the model whose layers have these full names.

        Args:
            also: names of modules that are no layers, which `ignore` may name.

        Raises:
            InputError: a pattern matches no layer, or no layer is left.
        """
        names = list(names)
        known = {"ignore": [*names, *also], "only": names}
        for option, patterns in (("ignore", self.ignore), ("only", self.only)):
            for pattern in patterns:
                if not any(matches(pattern, name) for name in known[option]):
                    raise InputError(
                        f"{option} {pattern!r} matches no layer of the decoder blocks; their names "
                        f"are {_examples(names)}"
                    )
        if not any(self.keeps(name, small) for name in names):
            raise InputError(
                f"ignore {' '.join(self.ignore) or '(none)'} and only "
                f"{' '.join(self.only) or '(all)'} leave no layer to quantize, of "
                f"{_examples(names)}"
            )


EVERY_LAYER = LayerFilter()


def _examples(names: list[str]) -> str:
    return ", ".join(names[:_EXAMPLES]) + (", .." if len(names) > _EXAMPLES else "")
