"""Which layers write to the residual stream, and where the stream can be seen before they do.

A block adds what a layer gives (o, down) to its hidden states. Nothing is known by names: the block
runs once on a short probe, and a layer's output y writes to the stream where two hidden states t
and t' that modules are given, the block is given, or the block gives, differ by just y. What is
not seen so (outputs that are scaled, normed or added up before they are added) writes to none.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from q2n.models.calls import BlockInput
from q2n.models.hooked import run_hooked
from q2n.models.sites import Site

BLOCK_INPUT = ""
"""Where the stream is what the block is called with."""


@torch.no_grad()
def with_streams(block: nn.Module, sites: Sequence[Site], probe: BlockInput) -> list[Site]:
    """The sites, those of a layer that writes to the stream with the place where it is seen."""
    writers = {site.targets[0]: site for site in sites if len(site.targets) == 1 and not site.stage}
    seen = _seen(block, list(writers), probe)
    places = {name: seen.place_of(name) for name in writers}
    return [replace(site, stream=places.get(site.targets[0])) for site in sites]


@dataclass
class _Seen:
    """Hidden states of one run in call order, and outputs of layers."""

    states: list[tuple[str | None, Tensor]]
    """With the module that is given them; None: the block gives them."""
    outputs: dict[str, Tensor] = field(default_factory=dict)

    def place_of(self, writer: str) -> str | None:
        """Where the stream is that a layer writes to."""
        y = self.outputs.get(writer)
        if y is None or not y.any():
            return None
        for number, (place, before) in enumerate(self.states):
            after = (x for _, x in self.states[number + 1 :])
            if place is not None and any(_adds_up(before, y, x) for x in after):
                return place
        return None


def _seen(block: nn.Module, writers: Sequence[str], probe: BlockInput) -> _Seen:
    tokens = probe.hidden.shape[:-1].numel()
    seen = _Seen([(BLOCK_INPUT, probe.hidden.flatten(0, -2))])

    def is_stream(x: Any) -> bool:
        same_width = isinstance(x, Tensor) and x.shape[-1:] == probe.hidden.shape[-1:]
        return same_width and x.shape[:-1].numel() == tokens

    def given(name: str, _: nn.Module, args: tuple[Any, ...]) -> None:
        if args and is_stream(args[0]):
            seen.states.append((name, args[0].flatten(0, -2)))

    def gave(name: str, _: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if is_stream(output):
            seen.outputs.setdefault(name, output.flatten(0, -2))

    hooks = [
        module.register_forward_pre_hook(partial(given, name))
        for name, module in block.named_modules()
        if name
    ]
    hooks += [block.get_submodule(x).register_forward_hook(partial(gave, x)) for x in writers]
    output = run_hooked(block, probe, hooks)
    seen.states.append((None, output.hidden.flatten(0, -2)))
    return seen


def _adds_up(before: Tensor, y: Tensor, after: Tensor) -> bool:
    """Whether `before + y` is `after`, to the rounding of the coarsest of them."""
    unit = max(torch.finfo(x.dtype).eps for x in (before, y, after))
    error = (before.float() + y.float() - after.float()).abs()
    return bool((error <= 2 * unit * (before.float().abs() + y.float().abs())).all())
