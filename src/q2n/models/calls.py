"""What a block is called with: what is the same for every stream, and what is one stream's own.

A model hands its blocks, beside the hidden states,

- what is known before the first block: masks, positions, flags. Every stream shares it;
- objects that blocks write into and later blocks read: keys and values that layers share;
- what earlier blocks returned beside their hidden states: the tokens that a sparse attention chose.

The last two are *carried*, by each stream for itself: the quantized prefix must not read the keys
of the full-precision model. A recorded call has slots in their places. A block is run on a copy of
the objects, so a pass that is given up has changed nothing, and may be taken again.
"""

from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from jaxtyping import Float
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree


@dataclass(frozen=True)
class Hidden:
    """Place of the hidden states."""


@dataclass(frozen=True)
class Held:
    """Place of an object that blocks write into, by its number in the model's calls."""

    number: int


@dataclass(frozen=True)
class Returned:
    """Place of something that an earlier block returned."""

    block: int
    part: int
    """Its number among the leaves of what the block returned."""


Slot = Held | Returned
Carried = Mapping[Slot, Any]
"""What one stream carries from block to block, for one batch."""


@dataclass(frozen=True, eq=False)
class BlockCall:
    """What the model passes to one block."""

    index: int
    """Of the block."""
    leaves: tuple[Any, ...]
    """Of arguments and keyword arguments, with slots in the places of what streams carry."""
    structure: pytree.TreeSpec
    axes: tuple[int | None, ...]
    """Of each leaf: the axis along which windows lie; None for what windows share."""
    needed: frozenset[Slot] = frozenset()
    """What later blocks read of what is there when this one has run."""

    @classmethod
    def of(cls, *args: Any, **kwargs: Any) -> "BlockCall":
        """A call of the first block, whose windows share everything but the hidden states."""
        leaves, structure = flatten_call(args, kwargs)
        axes = [0 if isinstance(leaf, Hidden) else None for leaf in leaves]
        return cls(0, tuple(leaves), structure, tuple(axes))

    @property
    def slots(self) -> frozenset[Slot]:
        """What the block reads of its stream."""
        return frozenset(leaf for leaf in self.leaves if isinstance(leaf, Slot))

    @property
    def hidden_axis(self) -> int:
        """The axis of the hidden states along which windows lie."""
        place = next(n for n, leaf in enumerate(self.leaves) if isinstance(leaf, Hidden))
        return self.axes[place] or 0

    def arguments(self, hidden: Tensor, carried: Carried) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments and keyword arguments for one batch of one stream."""

        def filled(leaf: Any) -> Any:
            if isinstance(leaf, Hidden):
                return hidden
            return carried[leaf] if isinstance(leaf, Slot) else leaf

        return pytree.tree_unflatten(map(filled, self.leaves), self.structure)

    def window(self, number: int, windows: int) -> "BlockCall":
        """The call for one window of a batch of `windows`."""
        cut = [
            leaf
            if axis is None or not isinstance(leaf, Tensor)
            else part(leaf, axis, number, windows)
            for leaf, axis in zip(self.leaves, self.axes, strict=True)
        ]
        return replace(self, leaves=tuple(cut))


@dataclass(frozen=True, eq=False)
class BlockOutput:
    """What a block makes of one batch of one stream."""

    hidden: Float[Tensor, "*batch hidden"]
    carried: Carried


@dataclass(frozen=True, eq=False)
class BlockInput:
    """All that a block is called with for one batch of one stream."""

    hidden: Float[Tensor, "*batch hidden"]
    call: BlockCall
    carried: Carried

    def run(self, block: Callable[..., Any]) -> BlockOutput:
        """Call the block; neither the input nor what is carried changes."""
        carried: dict[Slot, Any] = map_tensors(_itself, dict(self.carried))
        args, kwargs = self.call.arguments(self.hidden, carried)
        returned = pytree.tree_leaves(block(*args, **kwargs))
        carried |= {Returned(self.call.index, part): leaf for part, leaf in enumerate(returned)}
        after = {slot: carried[slot] for slot in self.call.needed}
        return BlockOutput(first_tensor(returned), after)

    def window(self, number: int, windows: int) -> "BlockInput":
        """The input of one window of a batch of `windows`: views of this one's tensors."""
        return BlockInput(
            part(self.hidden, self.call.hidden_axis, number, windows),
            self.call.window(number, windows),
            map_tensors(partial(_part_by_size, number=number, windows=windows), self.carried),
        )


def flatten_call(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[list[Any], pytree.TreeSpec]:
    """Leaves and structure of a call. Lists and dicts are leaves: blocks may write into them."""
    return pytree.tree_flatten(
        (args, kwargs), is_leaf=lambda x: isinstance(x, list | dict) and x is not kwargs
    )


def first_tensor(leaves: Iterable[Any]) -> Tensor:
    """The hidden states among the leaves of what a block returned."""
    return next(leaf for leaf in leaves if isinstance(leaf, Tensor))


def part(tensor: Tensor, axis: int, number: int, windows: int) -> Tensor:
    """One window's part of a tensor in which `windows` of them lie along an axis; one window may
    have several rows, as many as there are heads in BLOOM's position biases."""
    rows = tensor.shape[axis] // windows
    return tensor.narrow(axis, number * rows, rows)


def map_tensors(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    """A copy of any object with each tensor in it changed; what was one object remains one."""
    with _ChangeTensors(change):
        return deepcopy(value)


def tensors_in(value: Any) -> list[Tensor]:
    """Each tensor in any object once, in an order that its copies share."""
    found: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    map_tensors(keep, value)
    return found


def _itself(tensor: Tensor) -> Tensor:
    return tensor


def _part_by_size(tensor: Tensor, number: int, windows: int) -> Tensor:
    """Windows lie along the first axis of their number; those of a tensor that begins with an axis
    of 1 share it (rotary tables by kind of layer, in DeepSeek-V4's dictionary)."""
    if windows not in tensor.shape or tensor.shape[0] == 1:
        return tensor
    return part(tensor, tensor.shape.index(windows), number, windows)


class _ChangeTensors(TorchFunctionMode):
    """`deepcopy` changes tensors instead of copying them."""

    def __init__(self, change: Callable[[Tensor], Tensor]):
        super().__init__()
        self.change = change

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is Tensor.__deepcopy__:
            return self.change(args[0])
        return func(*args, **(kwargs or {}))
