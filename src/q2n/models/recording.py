"""What each block is called with, found by running the model on its embeddings alone.

Every block's forward is replaced by one that notes its call and returns what a block returns, with
a new tensor in each place. Where a later block is given one of these tensors, it reads what the
earlier block returned; the first of them are the hidden states. So how the model's own loop wires
its blocks is seen, not assumed, and a loop that does more between two blocks is refused.

Along which axis of a tensor windows lie is seen too: it is the one that grows with their number.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from inspect import signature
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from transformers import PretrainedConfig, PreTrainedModel

from q2n.errors import InputError
from q2n.models.calls import (
    BlockCall,
    Carried,
    Held,
    Hidden,
    Returned,
    Slot,
    first_tensor,
    flatten_call,
    map_tensors,
)
from q2n.models.running import running

Axes = list[tuple[int | None, ...]]
"""Of each block's call, for each leaf."""

_CONSTANTS = (bool, int, float, str, bytes, torch.dtype, torch.device, nn.Module, PretrainedConfig)
_UNUSABLE = (TypeError, ValueError, AttributeError, LookupError, NotImplementedError)
"""What a model's loop raises when its blocks return something else than it expects."""


@dataclass(frozen=True)
class BatchInputs:
    """One batch of windows at the input of the first block."""

    hidden: Float[Tensor, "*batch hidden"]
    calls: list[BlockCall]
    """One per block; equal tensors are the same object, within and between batches."""
    carried: Carried
    """What a stream carries at the start; blocks run on copies of it."""
    windows: int


class Recorder:
    """Runs a model whose blocks only note what they are called with.

    Args:
        first: loads the first block: its output tells what a block returns.
    """

    def __init__(
        self, model: PreTrainedModel, blocks: nn.ModuleList, first: Callable[[], nn.Module]
    ):
        self.model, self.blocks, self.first = model, blocks, first
        self._returned: Any = None

    def record(
        self,
        tokens: Int[Tensor, "windows length"],
        axes: Axes | None = None,
        intern: Callable[[Tensor], Tensor] = Tensor.detach,
    ) -> BatchInputs:
        """What each block would be called with on these windows.

        Args:
            axes: of calls at this length, if windows are to be cut.
            intern: what becomes of each tensor that streams share.

        Raises:
            InputError: the model does not run its blocks one after another.
        """
        loop = _Loop(self.model, self.blocks, self._form(tokens))
        self._run(tokens, loop.note)
        return BatchInputs(
            loop.hidden, loop.block_calls(axes, intern), loop.carried(intern), len(tokens)
        )

    def axes(self, tokens: Int[Tensor, "windows length"]) -> Axes:
        """The axes along which windows lie: those that grow when the first window comes twice.
        Raises as `record`."""
        once, twice = (self.record(tokens[:1].repeat(times, 1)) for times in (1, 2))
        return [
            tuple(
                _grown_axis(once.hidden, twice.hidden)
                if isinstance(leaf, Hidden)
                else _grown_axis(leaf, other)
                for leaf, other in zip(call.leaves, again.leaves, strict=True)
            )
            for call, again in zip(once.calls, twice.calls, strict=True)
        ]

    def run_after(
        self,
        tokens: Int[Tensor, "windows length"],
        hidden: Float[Tensor, "*batch hidden"],
        module: nn.Module,
    ) -> Any:
        """What the model, or the part of it that holds the blocks, returns on these windows when
        its last block returns these hidden states. Everything before and after the blocks must be
        loaded.

        Raises:
            InputError: the model does not run its blocks one after another.
        """
        leaves, structure = pytree.tree_flatten(self._form(tokens))
        first = first_tensor(leaves)
        returned = pytree.tree_unflatten(
            [hidden if leaf is first else leaf for leaf in leaves], structure
        )
        with self._refusing(), _in_place_of(self.blocks, lambda *_, **__: returned):
            return module(input_ids=tokens, use_cache=False)

    def _form(self, tokens: Int[Tensor, "windows length"]) -> Any:
        """What a block returns."""
        if self._returned is None:
            self._returned = self._returned_by_first(tokens[:1])
        return self._returned

    def _returned_by_first(self, tokens: Int[Tensor, "1 length"]) -> Any:
        outputs: list[Any] = []
        block = self.first()

        def run(_: int, *args: Any, **kwargs: Any) -> Any:
            outputs.append(block(*args, **kwargs))
            raise _Enough

        self._run(tokens, run)
        return outputs[0]

    def _run(self, tokens: Int[Tensor, "windows length"], forward: Callable[..., Any]) -> None:
        """Run the model until `forward`, in the place of every block's, has seen enough."""
        try:
            with self._refusing(), _in_place_of(self.blocks, forward):
                self.model(input_ids=tokens, use_cache=False)
        except _Enough:
            return
        raise _unlike(self.model, f"a text does not pass all {len(self.blocks)} of its blocks")

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        """Refuse a model whose loop over its blocks fails."""
        try:
            with running(type(self.model).__name__, but=_UNUSABLE):
                yield
        except _UNUSABLE as cause:
            raise _unlike(self.model, f"{type(cause).__name__}: {cause}") from cause


class _Enough(Exception):
    """Ends a recording run: nothing after the last block is needed."""


@contextmanager
def _in_place_of(blocks: nn.ModuleList, forward: Callable[..., Any]) -> Iterator[None]:
    """`forward(index, ...)` in the place of every block's own, which may be a hook's."""
    own = [block.__dict__.get("forward") for block in blocks]
    for index, block in enumerate(blocks):
        block.forward = partial(forward, index)
    try:
        yield
    finally:
        for block, before in zip(blocks, own, strict=True):
            del block.forward
            if before is not None:
                block.forward = before


class _Loop:
    """The calls of one run of the model, and what hangs together in them.

    Args:
        form: what a block returns.
    """

    def __init__(self, model: PreTrainedModel, blocks: nn.ModuleList, form: Any):
        self.model, self.blocks = model, blocks
        self.form, self.structure = pytree.tree_flatten(form)
        self.hidden: Tensor
        """What the first block received."""
        self._latest: Tensor
        """The hidden states that the last block returned."""
        self._calls: list[tuple[list[Any], pytree.TreeSpec]] = []
        self._returned: dict[int, tuple[Tensor, Hidden | Returned]] = {}
        """By address, with what keeps the address from being used again."""
        self._held: dict[int, tuple[Any, Held]] = {}

    def note(self, index: int, *args: Any, **kwargs: Any) -> Any:
        """Stands in for the forward of a block."""
        if index != len(self._calls):
            raise _unlike(self.model, f"it calls block {index} when {len(self._calls)} is due")
        leaves, structure = flatten_call(args, kwargs)
        if index == 0:
            self.hidden = self._latest = _first_argument(self.blocks[0], args, kwargs)
        elif not any(map(self._is_latest, leaves)):
            raise _unlike(self.model, f"it changes the hidden states in front of block {index}")
        self._calls.append((list(map(partial(self._slot, index), leaves)), structure))
        if len(self._calls) == len(self.blocks):
            raise _Enough
        return self._output(index)

    def _is_latest(self, leaf: Any) -> bool:
        """Whether an argument is the hidden states of the block before, or a view of all of it."""
        latest = self._latest
        return leaf is latest or (
            isinstance(leaf, Tensor)
            and leaf.data_ptr() == latest.data_ptr()
            and leaf.shape == latest.shape
            and leaf.stride() == latest.stride()
        )

    def _slot(self, index: int, leaf: Any) -> Any:
        """What stands for an argument in the recorded call of a block."""
        if self._is_latest(leaf):
            return Hidden()
        if id(leaf) in self._returned:
            return self._returned[id(leaf)][1]
        if isinstance(leaf, (Tensor, *_CONSTANTS)) or leaf is None or callable(leaf):
            return leaf
        return self._held.setdefault(id(leaf), (leaf, Held(len(self._held))))[1]

    def _output(self, index: int) -> Any:
        """What a block returns, each tensor a new one. In place of None too there is one: another
        block may return a tensor there."""
        first = first_tensor(self.form)
        parts = [
            _blank(self._latest if leaf is first else leaf)
            if isinstance(leaf, Tensor) or leaf is None
            else leaf
            for leaf in self.form
        ]
        self._returned |= {
            id(leaf): (leaf, Returned(index, part))
            for part, leaf in enumerate(parts)
            if isinstance(leaf, Tensor)
        }
        self._latest = first_tensor(parts)
        return pytree.tree_unflatten(parts, self.structure)

    def block_calls(self, axes: Axes | None, intern: Callable[[Tensor], Tensor]) -> list[BlockCall]:
        """The calls, each with what the later ones read."""
        calls: list[BlockCall] = []
        needed: frozenset[Slot] = frozenset()
        for index in reversed(range(len(self._calls))):
            leaves, structure = self._calls[index]
            shared = tuple(intern(x) if isinstance(x, Tensor) else x for x in leaves)
            own = axes[index] if axes is not None else (None,) * len(leaves)
            needed = frozenset(slot for slot in needed if _exists_after(index, slot))
            calls.append(BlockCall(index, shared, structure, own, needed))
            needed |= calls[-1].slots
        return calls[::-1]

    def carried(self, intern: Callable[[Tensor], Tensor]) -> Carried:
        """The objects that blocks write into, as the model made them."""
        return map_tensors(intern, {slot: made for made, slot in self._held.values()})


def _exists_after(index: int, slot: Slot) -> bool:
    return isinstance(slot, Held) or slot.block <= index


def _first_argument(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The hidden states: the first tensor of numbers, in the order of the block's parameters."""
    named = (kwargs[name] for name in signature(type(block).forward).parameters if name in kwargs)
    tensors = (x for x in pytree.tree_leaves([*args, *named]) if isinstance(x, Tensor))
    return next(x for x in tensors if x.is_floating_point())


def _blank(like: Tensor | None) -> Tensor:
    """A tensor of this shape with memory of its own, for one number."""
    return torch.zeros(1) if like is None else like.new_zeros(1).expand(like.shape)


def _grown_axis(once: Any, twice: Any) -> int | None:
    if not isinstance(once, Tensor):
        return None
    return next((a for a, n in enumerate(once.shape) if n != twice.shape[a]), None)


def _unlike(model: PreTrainedModel, what: str) -> InputError:
    return InputError(
        f"{type(model).__name__} cannot be run one block at a time: {what}; "
        "this architecture is not supported"
    )
