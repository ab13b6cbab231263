"""What happens inside each block when a batch passes it, seen on the meta device.

On the meta device tensors have shapes and no numbers, so a batch of any model passes in a moment.
Hooks in front of the linears see which of them read one tensor (a site), and a dispatch mode sees
every tensor that is made and when it is given up: so what a pass holds when it pauses at a site,
and the most that it ever holds, are counted and not assumed. Nothing depends on the architecture.

Three things a model does cannot be done without numbers. Questions about values (is the mask all
ones?) are answered with no. Attention is taken for a kernel that holds no matrix of all pairs of
tokens, as torch's is. Experts are passed over: which tokens reach which of them depends on numbers.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

from q2n.errors import InputError, reason_of
from q2n.models.config_file import BAD_CONFIG
from q2n.models.experts import OneByOne
from q2n.models.targets import TARGETS

_ANSWERS: dict[Any, Callable[[Tensor], Any]] = {
    Tensor.__bool__: lambda _: False,
    Tensor.__contains__: lambda _: False,
    Tensor.__int__: lambda _: 0,
    Tensor.item: lambda _: 0,
    Tensor.tolist: lambda x: torch.zeros(x.shape).tolist(),
}


@dataclass(frozen=True)
class SeenSite:
    """One tensor that linears read."""

    readers: tuple[str, ...]
    """Their names in the block, in call order; a mixture's experts are one reader."""
    width: int
    held: int
    """Bytes that the pass of the batch holds inside the block when the first of them is called."""


@dataclass
class SeenBlock:
    """One block's turn."""

    sites: list[SeenSite] = field(default_factory=list)
    most: int = 0
    """Bytes that the pass of the batch holds inside the block, at most."""
    per_pair: int = 0
    """Operations that attention takes for each pair of tokens, in all heads together. An attention
    that a model writes out itself is not counted."""


def _chooses(module: nn.Module) -> bool:
    """Whether a module runs experts: those that are known, or one parameter [experts, ., .]. The
    weight of a depthwise convolution has an axis of 1."""
    own = module.parameters(recurse=False)
    stacked = any(parameter.ndim == 3 and 1 not in parameter.shape for parameter in own)
    return isinstance(module, OneByOne) or stacked


def dry_run(
    model: PreTrainedModel, blocks: nn.ModuleList, windows: int, length: int
) -> list[SeenBlock]:
    """Pass one batch through a model whose weights are on the meta device.

    Args:
        model: is changed: all of it goes to the meta device.
        blocks: its decoder blocks.

    Raises:
        InputError: the model does not run without numbers.
    """
    model.to("meta")  # type: ignore[arg-type]  # buffers were real
    watch = _Watch()
    tokens = torch.zeros(windows, length, dtype=torch.long, device="meta")
    try:
        with torch.no_grad(), _watched(blocks, watch), _WithoutNumbers(watch), watch:
            model(input_ids=tokens, use_cache=False)
    except _Passed:
        return watch.blocks
    except BAD_CONFIG as cause:
        raise InputError(
            f"{type(model).__name__} cannot be planned: without numbers it does not run "
            f"({reason_of(cause)})"
        ) from cause
    raise InputError(
        f"{type(model).__name__} cannot be planned: a text does not pass all {len(blocks)} of its "
        "blocks"
    )


class _Passed(Exception):
    """All blocks have run: what comes after them is not looked at."""


class _WithoutNumbers(TorchFunctionMode):
    """Answers for values, and an attention that holds nothing but its output."""

    def __init__(self, watch: "_Watch"):
        super().__init__()
        self.watch = watch

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func in _ANSWERS and args[0].is_meta:
            return _ANSWERS[func](args[0])
        if func is functional.scaled_dot_product_attention:
            query, _, value = args[:3]
            self.watch.attends(query.shape[-3], query.shape[-1] + value.shape[-1])
            return query.new_empty(*query.shape[:-1], value.shape[-1])
        return func(*args, **(kwargs or {}))


class _Watch(TorchDispatchMode):
    """Knows the tensors that were made inside the present block and are still alive."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks: list[SeenBlock] = []
        self._made: list[ref[Tensor]] = []
        self._own: set[int] = set()
        self._read: list[tuple[ref[Tensor], SeenSite]] = []

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        if self.blocks:
            self._made += [ref(x) for x in pytree.tree_leaves(made) if isinstance(x, Tensor)]
            self.blocks[-1].most = max(self.blocks[-1].most, self._held())
        return made

    def enter(self, block: nn.Module) -> None:
        """A block begins. Its weights are no part of what a pass holds."""
        self.blocks.append(SeenBlock())
        self._made, self._read = [], []
        self._own = {_memory(x) for x in chain(block.parameters(), block.buffers())}

    def attends(self, heads: int, width: int) -> None:
        """So many heads attend, whose keys and values together are so wide."""
        if self.blocks:
            self.blocks[-1].per_pair += 2 * heads * width

    def reads(self, name: str, tensor: Tensor) -> None:
        """A linear of the present block is about to read a tensor."""
        sites = self.blocks[-1].sites
        for number, (seen, site) in enumerate(self._read):
            if seen() is tensor:
                widened = SeenSite((*site.readers, name), site.width, site.held)
                self._read[number] = (seen, widened)
                sites[number] = widened
                return
        site = SeenSite((name,), tensor.shape[-1], self._held())
        self._read.append((ref(tensor), site))
        sites.append(site)

    def _held(self) -> int:
        """Bytes of all memory behind living tensors; views share theirs."""
        self._made = [made for made in self._made if made() is not None]
        living = [tensor for made in self._made if (tensor := made()) is not None]
        sizes = {_memory(x): x.untyped_storage().nbytes() for x in living}
        return sum(size for memory, size in sizes.items() if memory not in self._own)


def _memory(tensor: Tensor) -> int:
    """What stands for the memory behind a tensor."""
    return tensor.untyped_storage()._cdata


@contextmanager
def _watched(blocks: nn.ModuleList, watch: _Watch) -> Iterator[None]:
    """Blocks and their linears report; experts are passed over; the run ends after the blocks."""
    for index, block in enumerate(blocks):
        block.register_forward_pre_hook(lambda module, _: watch.enter(module))
        for name, module in block.named_modules():
            if _chooses(module):
                module.forward = partial(_pass_over, watch, name)
            elif any(isinstance(module, kind) for kind in TARGETS):
                module.register_forward_pre_hook(partial(_report, watch, name))
        if index + 1 == len(blocks):
            block.register_forward_hook(_end)
    yield


def _report(watch: _Watch, name: str, _: nn.Module, args: tuple[Any, ...]) -> None:
    if args and isinstance(args[0], Tensor) and args[0].is_floating_point():
        watch.reads(name, args[0])


def _pass_over(watch: _Watch, name: str, hidden: Tensor, *_: Any, **__: Any) -> Tensor:
    watch.reads(name, hidden)
    return torch.empty_like(hidden)


def _end(*_: Any) -> None:
    raise _Passed
