r"""The gradients of a model's own predictions, block by block, from the last one to the first.

    forward     the input of every block is kept, batch by batch
    head        at every position a label y is drawn from what the model predicts there; the
                gradient of -sum log p_y at the last block's output
    backward    each window runs through a block once more, and its gradient back

Labels are drawn and not those that come: then gradients have mean 0, and their covariance (Fisher's
matrix) is the Hessian of the divergence KL(p | q) that a change of the model brings. With several
draws the forward passes are shared.

One block at a time is in memory, and the inputs of all blocks are on disk. Without gradients of
weights a pass takes 2 + draws forward passes of the text, with them 2 + 2 draws; products are in
the device's fast dtype. Nothing but the last block's output may lead from one block to the next: a
model whose blocks read what earlier ones left (shared keys and values) is refused.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from q2n.errors import InputError
from q2n.linalg.forward_products import forward_products
from q2n.logging import Bar
from q2n.models.blocks import BlockwiseModel
from q2n.models.calls import part
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

    Raises:
        InputError: blocks of the model read more than the last one's output.
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
        if first.calls[0][0].needed or first.calls[0][0].hidden_axis:
            raise InputError(
                "blocks of this model read what earlier ones left beside their output, and "
                f"gradients do not go that way: {without}"
            )
        self.inputs = [first]
        """Of each block, on disk; then the last one's output."""
        self.gradients = [self._place(f"gradients-{draw}", 1 + draws) for draw in range(draws)]
        """At the output of the block that comes next, by draw; each in float32."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        for place in (*(stream.hidden for stream in self.inputs), *self.gradients):
            place.close()

    @property
    def steps(self) -> int:
        """Of `through`."""
        return len(self.tokens) * len(self.gradients)

    def to_the_end(self, bar: Bar) -> None:
        """Forward through all blocks, and the gradients at the end."""
        for index in range(len(self.model)):
            bar.detail(f"{self.model.block_name(index)}: forward")
            block = self.model.load_block(index)
            self.model.read_ahead(index + 1)
            self.forward(index, block)
            bar.advance()
        self.draw()

    def forward(self, index: int, block: nn.Module) -> None:
        """Keep a block's output."""
        before = self.inputs[index]
        after = replace(
            before,
            hidden=OnDisk(self.folder / f"inputs-{index + 1}", self.model.device, self.without),
            carried=[{} for _ in before.calls],
        )
        with forward_products(self.model.device):
            for batch in range(len(before)):
                after.put(batch, before.inputs(batch, index).run(block))
        self.inputs.append(after)

    def taken(self, index: int) -> Stream:
        """The input of a block, where the run keeps its block inputs; to be closed."""
        kept = self.inputs[index]
        hidden = self._place("inputs", 1 + len(self.gradients))
        stream = replace(kept, hidden=hidden, carried=[{} for _ in kept.calls])
        for batch in range(len(kept)):
            stream.hidden.put(batch, kept.hidden.get(batch))
        return stream

    def draw(self) -> None:
        """The gradients at the last block's output. After `forward` of every block."""
        with _frozen(self.model.without_blocks):
            self._draw()

    def _draw(self) -> None:
        last = self.inputs[-1]
        for batch, tokens in enumerate(self.tokens.split(self.options.batch_size)):
            hidden = last.hidden.get(batch)
            found = [torch.empty_like(hidden, dtype=torch.float32) for _ in self.gradients]
            for row in range(len(tokens)):
                seed = batch * self.options.batch_size + row + self.options.seed
                generator = torch.Generator().manual_seed(seed)
                self._at_window(tokens[row], hidden[row], [x[row] for x in found], generator)
            for place, gradient in zip(self.gradients, found, strict=True):
                place.put(batch, gradient)

    def through(self, index: int, block: nn.Module) -> Iterator[None]:
        """Run every window through a block and back. At each step those parameters of the block
        that take gradients have the gradients of one window and draw."""
        stream = self.inputs[index]
        for batch, windows in enumerate(stream.windows):
            inputs = stream.inputs(batch, index)
            above = [place.get(batch) for place in self.gradients]
            below = [torch.empty_like(gradient) for gradient in above]
            for row in range(windows):
                window = inputs.window(row, windows)
                hidden = window.hidden.detach().requires_grad_()
                with torch.enable_grad(), in_fast_dtype(block):
                    output = replace(window, hidden=hidden).run(block).hidden
                for draw, (gradient, earlier) in enumerate(zip(above, below, strict=True)):
                    output.backward(
                        part(gradient, 0, row, windows).to(output.dtype),
                        retain_graph=draw + 1 < len(above),
                    )
                    assert hidden.grad is not None
                    part(earlier, 0, row, windows).copy_(hidden.grad)
                    hidden.grad = None
                    yield
                    block.zero_grad(set_to_none=True)
            for place, earlier in zip(self.gradients, below, strict=True):
                place.put(batch, earlier)

    def _at_window(
        self,
        tokens: Int[Tensor, " length"],
        hidden: Float[Tensor, "length hidden"],
        found: list[Float[Tensor, "length hidden"]],
        generator: torch.Generator,
    ) -> None:
        """Fill in the gradients of one window, a few positions at a time: what comes after the
        blocks reads each position by itself."""
        step = max(1, CHUNK // (self.model.vocabulary or CHUNK))
        for start in range(0, len(tokens), step):
            rows = slice(start, start + step)
            states = hidden[None, rows].detach().requires_grad_()
            with torch.enable_grad(), in_fast_dtype(self.model.without_blocks):
                after = self.model.run_after(tokens[None, rows], states, self.model.without_blocks)
                log_p = after.logits[0].float().log_softmax(1)
                labels = _drawn(log_p.detach().exp(), len(found), generator)
                losses = [-log_p.gather(1, y[:, None]).sum() for y in labels]
            for draw, loss in enumerate(losses):
                loss.backward(retain_graph=draw + 1 < len(losses))
                assert states.grad is not None
                found[draw][rows] = states.grad[0]
                states.grad = None

    def _place(self, name: str, of: int) -> Activations:
        """One of so many streams that lie where the run keeps its block inputs."""
        options = self.options
        limit = options.bytes_in_memory / of
        return activations(options.activations, self.model.device, self.folder / name, limit)


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
