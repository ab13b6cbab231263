r"""The gradients of a model's own predictions, block by block, from the last one to the first.

    forward     the input of every block is kept, batch by batch
    head        at every position a label y is drawn from what the model predicts there; the
                gradient of -sum log p_y at the last block's output
    backward    each window runs through a block once more, and its gradient back

Labels are drawn and not those that come: then gradients have mean 0, and their covariance (Fisher's
matrix) is the Hessian of the divergence KL(p | q) that a change of the model brings. With several
draws the forward passes are shared.

One block at a time is in memory, and the inputs of all blocks are on disk; what blocks carry beside
the hidden states (keys and values that later ones read: models/calls.py) is in main memory, each
tensor once, and gradients come back on the same ways. Without gradients of weights a pass takes
2 + draws forward passes of the text, with them 2 + 2 draws; products are in the device's fast
dtype.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from q2n.linalg.forward_products import forward_products
from q2n.logging import Bar
from q2n.models.blocks import BlockwiseModel
from q2n.models.calls import BlockInput, BlockOutput, map_tensors, part, tensors_in
from q2n.pipeline.activations import Activations, OnDisk, activations
from q2n.pipeline.options import LoopOptions
from q2n.pipeline.streams import Stream, open_streams
from q2n.refit.descent import in_fast_dtype

CHUNK = 2**25
"""Logits in memory at once: 128 MB in float32, of which there are some copies."""

Hidden = Float[Tensor, "*batch hidden"]


class Backward:
    """A pass over one text. Blocks must be taken in order, the last one first.

    Args:
        folder: parent of the folders of what goes to disk.
        draws: labels at each position.
        without: what does without these gradients, for messages.
    """

    def __init__(
        self,
        model: BlockwiseModel,
        tokens: Int[Tensor, "windows length"],
        options: LoopOptions,
        folder: Path,
        *,
        draws: int,
        without: str,
    ):
        self.model, self.tokens, self.options = model, tokens, options
        self.folder, self.without = folder, without
        [first] = open_streams(
            model, tokens, ["inputs-0"], replace(options, activations="disk"), folder
        )
        self.inputs = [first]
        """Of each block, on disk; then the last one's output."""
        self.gradients = [
            self._like(first, self._place(f"gradients-{draw}", 1 + draws)) for draw in range(draws)
        ]
        """At what the block that comes next leaves, by draw; in float32."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        for stream in (*self.inputs, *self.gradients):
            stream.hidden.close()

    @property
    def steps(self) -> int:
        """Of `through`."""
        return len(self.tokens) * len(self.gradients)

    def to_the_end(
        self, bar: Bar, passed: Callable[[int, nn.Module], None] = lambda *_: None
    ) -> None:
        """Forward through all blocks, and the gradients at the end; `passed` is told of each
        block."""
        for index in range(len(self.model)):
            bar.detail(f"{self.model.block_name(index)}: forward")
            block = self.model.load_block(index)
            self.model.read_ahead(index + 1)
            self.forward(index, block)
            passed(index, block)
            bar.advance()
        self.draw()

    def forward(self, index: int, block: nn.Module) -> None:
        """Keep a block's output."""
        before = self.inputs[index]
        place = OnDisk(self.folder / f"inputs-{index + 1}", self.model.device, self.without)
        after = self._like(before, place)
        with forward_products(self.model.device):
            for batch in range(len(before)):
                inputs = before.inputs(batch, index)
                output = inputs.run(block)
                there = map(id, tensors_in(inputs.carried))
                kept = dict(zip(there, tensors_in(before.carried[batch]), strict=True))
                carried = map_tensors(partial(_one_of, kept), output.carried)
                after.put(batch, replace(output, carried=carried))
        self.inputs.append(after)

    def taken(self, index: int) -> Stream:
        """The input of a block, where the run keeps its block inputs; to be closed."""
        kept = self.inputs[index]
        stream = self._like(kept, self._place("inputs", 1 + len(self.gradients)))
        for batch in range(len(kept)):
            stream.put(batch, BlockOutput(kept.hidden.get(batch), kept.carried[batch]))
        return stream

    def draw(self) -> None:
        """The gradients at the last block's output. After `forward` of every block."""
        with _frozen(self.model.without_blocks):
            self._draw()

    def _draw(self) -> None:
        last = self.inputs[-1]
        for batch, tokens in enumerate(self.tokens.split(self.options.batch_size)):
            hidden, windows = last.hidden.get(batch), len(tokens)
            found = [torch.empty_like(hidden, dtype=torch.float32) for _ in self.gradients]
            axis = last.calls[batch][-1].hidden_axis
            for row in range(windows):
                seed = batch * self.options.batch_size + row + self.options.seed
                generator = torch.Generator().manual_seed(seed)
                states, *goals = (part(x, axis, row, windows) for x in (hidden, *found))
                self._at_window(tokens[row], states, goals, axis + 1, generator)
            for stream, gradient in zip(self.gradients, found, strict=True):
                stream.put(batch, BlockOutput(gradient, {}))

    def through(self, index: int, block: nn.Module) -> Iterator[None]:
        """Run every window through a block and back. At each step those parameters of the block
        that take gradients have the gradients of one window and draw."""
        stream, behind = self.inputs[index], min(index + 1, len(self.model) - 1)
        for batch, windows in enumerate(stream.windows):
            inputs = stream.inputs(batch, index)
            above = [gradients.inputs(batch, behind) for gradients in self.gradients]
            below = [_no_gradient(inputs) for _ in above]
            for row in range(windows):
                window = _leaves(inputs.window(row, windows))
                with torch.enable_grad(), in_fast_dtype(block):
                    output = window.run(block)
                for draw, (given, wanted) in enumerate(zip(above, below, strict=True)):
                    _back(output, given.window(row, windows), again=draw + 1 < len(above))
                    _move_gradients(window, wanted.window(row, windows))
                    yield
                    block.zero_grad(set_to_none=True)
            for gradients, wanted in zip(self.gradients, below, strict=True):
                gradients.put(batch, BlockOutput(wanted.hidden, wanted.carried))

    def _at_window(
        self,
        tokens: Int[Tensor, " length"],
        hidden: Float[Tensor, "*window hidden"],
        found: list[Float[Tensor, "*window hidden"]],
        axis: int,
        generator: torch.Generator,
    ) -> None:
        """Fill in the gradients of one window, a few positions at a time: what comes after the
        blocks reads each position by itself. They lie along `axis` of the hidden states."""
        step = max(1, CHUNK // (self.model.vocabulary or CHUNK))
        for start in range(0, len(tokens), step):
            own = tokens[start : start + step]
            states, *goals = (x.narrow(axis, start, len(own)) for x in (hidden, *found))
            states = states.detach().requires_grad_()
            with torch.enable_grad(), in_fast_dtype(self.model.without_blocks):
                after = self.model.run_after(own[None], states, self.model.without_blocks)
                log_p = after.logits[0].float().log_softmax(1)
                labels = _drawn(log_p.detach().exp(), len(found), generator)
                losses = [-log_p.gather(1, y[:, None]).sum() for y in labels]
            for draw, (loss, goal) in enumerate(zip(losses, goals, strict=True)):
                loss.backward(retain_graph=draw + 1 < len(losses))
                assert states.grad is not None
                goal.copy_(states.grad)
                states.grad = None

    def _like(self, stream: Stream, hidden: Activations) -> Stream:
        """A stream of the same batches, with nothing in it yet."""
        return replace(stream, hidden=hidden, carried=[{} for _ in stream.calls])

    def _place(self, name: str, of: int) -> Activations:
        """One of so many streams that lie where the run keeps its block inputs."""
        options = self.options
        limit = options.bytes_in_memory / of
        return activations(options.activations, self.model.device, self.folder / name, limit)


def _one_of(kept: Mapping[int, Tensor], tensor: Tensor) -> Tensor:
    """Where a tensor is kept already, by its address; else itself."""
    return kept.get(id(tensor), tensor)


def _values(at: BlockInput | BlockOutput) -> list[Tensor]:
    """What gradients go through: hidden states, and the numbers that blocks carry."""
    return [at.hidden, *(x for x in tensors_in(at.carried) if x.is_floating_point())]


def _mapped(inputs: BlockInput, change: Callable[[Tensor], Tensor]) -> BlockInput:
    """Each of the values changed."""

    def changed(x: Tensor) -> Tensor:
        return change(x) if x.is_floating_point() else x

    carried = map_tensors(changed, inputs.carried)
    return replace(inputs, hidden=change(inputs.hidden), carried=carried)


def _leaves(inputs: BlockInput) -> BlockInput:
    """The same values, which take gradients."""
    return _mapped(inputs, lambda x: x.detach().requires_grad_())


def _no_gradient(inputs: BlockInput) -> BlockInput:
    """In the places of the values, their gradients before there are any."""
    return _mapped(inputs, partial(torch.zeros_like, dtype=torch.float32))


def _back(output: BlockOutput, gradients: BlockInput, *, again: bool) -> None:
    """From what a block leaves to what it reads; `again`: another time after this one."""
    pairs = zip(_values(output), _values(gradients), strict=True)
    taking = [(value, gradient) for value, gradient in pairs if value.requires_grad]
    torch.autograd.backward(
        [value for value, _ in taking],
        [gradient.to(value.dtype) for value, gradient in taking],
        retain_graph=again,
    )


def _move_gradients(leaves: BlockInput, places: BlockInput) -> None:
    """From the values that took them to where they are kept."""
    for leaf, place in zip(_values(leaves), _values(places), strict=True):
        if leaf.grad is not None:
            place.copy_(leaf.grad)
            leaf.grad = None


def _drawn(
    p: Float[Tensor, "tokens words"], draws: int, generator: torch.Generator
) -> list[Int[Tensor, " tokens"]]:
    """Words drawn with these probabilities: the same on every device."""
    bounds = p.cumsum(1)
    dice = torch.rand(draws, len(p), 1, generator=generator).to(p.device)
    return [(bounds < x * bounds[:, -1:]).sum(1).clamp(max=p.shape[1] - 1) for x in dice]


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """While open, no parameter takes gradients: the module may be a part of a user's own model."""
    taking = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in taking:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in taking:
            parameter.requires_grad_()
