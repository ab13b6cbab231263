"""How the junctions of a block are found: nothing is known by names.

Which modules read one tensor, and whether a norm computes it, is seen in a run of the block on a
short probe. Whether a source will do is tried: with s of random powers of 2, which no dtype rounds,
the block must compute what it did, and every linear must get what it got, divided by s where it
reads x. A consumer that is not seen fails that: a residual that takes the norm's output, a gate
that is not linear, keys and values that later blocks read, a rotation in between. Such a junction
has no source. Nor has one in front of o where several heads share their values, for these are fewer
than the channels of o; llm-compressor leaves it out as well.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from q2n.models.calls import BlockInput, BlockOutput, tensors_in
from q2n.models.experts import OneByOne, Stage, experts_in, readers
from q2n.models.hooked import run_hooked
from q2n.models.junctions import Junction, Source
from q2n.models.sites import inputs_of
from q2n.models.targets import Target, targets_in

_EXPONENTS = 2
"""Trials scale by 2^-2 .. 2^2."""
_TOLERANCE = 1e-4
"""Relative; norms that multiply with 1 + weight round a trial. In 16 bits 4 times the precision."""


@torch.no_grad()
def find_junctions(
    block: nn.Module,
    targets: Mapping[str, Target],
    probe: BlockInput,
    shared: Collection[str] = (),
) -> list[Junction]:
    """The junctions of the linears to quantize, in call order: each linear is a reader before it
    is a source. The block's weights change meanwhile, and are the old ones at the end.

    Args:
        targets: the linears to quantize, by their names in the block.
        shared: names of parameters that are another block's too, and must not change.
    """
    trial = _Trial(block, probe)
    found, fixed = [], {name.rpartition(".")[0] for name in shared}
    for junction, sources in _candidates(block, targets, probe):
        allowed = [x for x in sources if fixed.isdisjoint({x.module, *junction.readers})]
        tried = (replace(junction, source=source) for source in allowed)
        found.append(next((x for x in tried if trial.holds([x])), junction))
    for name, experts in experts_in(block):
        mixture = _of_experts(name, experts, targets)
        if mixture and not trial.holds(mixture):
            mixture = [replace(junction, source=None) for junction in mixture]
        found += mixture
    return found


def _of_experts(name: str, experts: OneByOne, targets: Mapping[str, Target]) -> list[Junction]:
    """What each expert hands to its last matrix, from the rows of `up_proj`."""
    junctions = []
    for expert in range(experts.num_experts):
        (down,) = readers(experts, name, expert, Stage(0, True))
        if down in targets:
            source = Source(f"{name}.{expert}.up_proj", "linear")
            junctions.append(Junction((down,), targets[down].shape[1], name, expert, source))
    return junctions


def _candidates(
    block: nn.Module, targets: Mapping[str, Target], probe: BlockInput
) -> Iterator[tuple[Junction, list[Source]]]:
    """Tensors outside of experts that targets read, and what may be their sources, the likeliest
    first."""
    experts, every = dict(experts_in(block)), targets_in(block)
    read, made = _seen(block, probe)
    groups: dict[tuple[int, int], list[str]] = {}
    for name, tensor in read.items():
        groups.setdefault(_memory(tensor), []).append(name)
    order = list(read)
    for memory, names in groups.items():
        width = read[names[0]].shape[-1]
        all_readers = [
            reader
            for name in names
            for reader in (_first_of(experts[name], name) if name in experts else [name])
        ]
        if targets.keys().isdisjoint(all_readers):
            continue
        norms = [n for n, x in made.items() if _memory(x) == memory and x.shape[-1] == width]
        before = [
            name
            for name in reversed(order[: order.index(names[0])])
            if name in every and every[name].shape[0] >= width
        ]
        sources = [Source(norm, "norm", offset) for norm in norms for offset in (0.0, 1.0)]
        sources = sources or [Source(name, "linear") for name in before]
        yield Junction(tuple(all_readers), width, names[0]), sources


def _first_of(experts: OneByOne, name: str) -> list[str]:
    """The matrices that read what a mixture's experts are called with."""
    stage = Stage(0, False)
    return [x for e in range(experts.num_experts) for x in readers(experts, name, e, stage)]


def _seen(block: nn.Module, probe: BlockInput) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Of one run: what modules with a matrix, and experts, are called with first; what modules with
    a vector return first."""
    read: dict[str, Tensor] = {}
    made: dict[str, Tensor] = {}
    within = tuple(f"{name}." for name, _ in experts_in(block))
    hooks = []
    for name, module in block.named_modules():
        weight = module._parameters.get("weight")
        dims = weight.ndim if weight is not None else 0
        if isinstance(module, OneByOne) or (dims == 2 and not name.startswith(within)):
            keep = partial(_keep_input, read, name)
            hooks.append(module.register_forward_pre_hook(keep, with_kwargs=True))
        elif dims == 1:
            hooks.append(module.register_forward_hook(partial(_keep_output, made, name)))
    run_hooked(block, probe, hooks)
    return read, made


def _keep_input(
    read: dict[str, Tensor], name: str, module: nn.Module, args: Any, kwargs: Mapping[str, Any]
) -> None:
    tensors = (x for x in (*args, *kwargs.values()) if isinstance(x, Tensor))
    value = next((x for x in tensors if x.is_floating_point()), None)
    weight = module._parameters.get("weight")
    if value is not None and (weight is None or value.shape[-1] in weight.shape):
        read.setdefault(name, value)


def _keep_output(made: dict[str, Tensor], name: str, _: nn.Module, args: Any, output: Any) -> None:
    if isinstance(output, Tensor):
        made.setdefault(name, output)


def _memory(tensor: Tensor) -> tuple[int, int]:
    """What views of the same numbers share. What is compared is kept alive, so that no address is
    used twice."""
    return tensor.data_ptr(), tensor.numel()


class _Trial:
    """Tries sources on one block: it holds what the block did before."""

    def __init__(self, block: nn.Module, probe: BlockInput):
        self.block, self.probe = block, probe
        self.targets = targets_in(block)
        self.generator = torch.Generator().manual_seed(0)
        self.inputs, self.output = self._run()
        weight = next(block.parameters())
        self.precision = torch.finfo(weight.dtype).eps if weight.is_floating_point() else 0.0
        self.tolerance = max(_TOLERANCE, 4 * self.precision)

    def holds(self, junctions: Sequence[Junction]) -> bool:
        """Whether a scale can move in all of these junctions."""
        scales = [self._scale(junction.width) for junction in junctions]
        before: dict[str, Tensor] = {}
        try:
            for junction, scale in zip(junctions, scales, strict=True):
                for name, value in junction.scaled(self.block, scale):
                    parameter = self.block.get_parameter(name)
                    before.setdefault(name, parameter.clone())
                    parameter.copy_(value)
            inputs, output = self._run()
        finally:
            for name, value in before.items():
                self.block.get_parameter(name).copy_(value)
        moved = {
            reader: scale
            for junction, scale in zip(junctions, scales, strict=True)
            for reader in junction.readers
        }
        says_something = all(self.inputs[name].any() for name in moved if name in self.inputs)
        scaled = all(
            _close(x, self.inputs[name] / moved.get(name, 1.0), self.tolerance)
            for name, x in inputs.items()
        )
        return says_something and scaled and self._same_output(output)

    def _run(self) -> tuple[dict[str, Tensor], BlockOutput]:
        received, output = inputs_of(self.block, self.targets, self.probe)
        return {name: one.tensor for name, one in received.items()}, output

    def _scale(self, width: int) -> Float[Tensor, " width"]:
        exponents = torch.randint(-_EXPONENTS, _EXPONENTS + 1, (width,), generator=self.generator)
        return (2.0**exponents).to(self.probe.hidden.device)

    def _same_output(self, output: BlockOutput) -> bool:
        """Whether the block does to the hidden states what it did, as closely as they can hold it,
        and leaves the same for later blocks."""
        old, new = self.output.hidden.float(), output.hidden.float()
        change = old - self.probe.hidden.float() if old.shape == self.probe.hidden.shape else old
        allowed = self.tolerance * change.norm() + self.precision * old.norm()
        return bool((new - old).norm() <= allowed) and all(
            _close(a, b, self.tolerance)
            for a, b in zip(
                tensors_in(output.carried), tensors_in(self.output.carried), strict=True
            )
        )


def _close(new: Shaped[Tensor, "..."], old: Shaped[Tensor, "..."], tolerance: float) -> bool:
    return bool((new.float() - old.float()).norm() <= tolerance * old.float().norm())
