r"""Which block and which layer costs what, in one pass over the blocks of two models.

With B_j the original blocks and Q_j the quantized ones, the model

    alone i       B_0 .. B_{i-1}  Q_i  B_{i+1} .. B_{n-1}      tells what block i costs by itself,
    up to here i  Q_0 .. Q_{i-1}  Q_i  B_{i+1} .. B_{n-1}      what all blocks so far cost.

Everything outside the blocks is the original's. Each of these models is a *stream* of hidden states
that leaves the reference's, or the quantized prefix's, at block i. All streams pass block j before
the next one is loaded:

    the reference       B_j, while its linears count their errors (output_change.py)
    alone j             starts as Q_j on the reference's input
    up to here j        starts as Q_j on what left up to here j - 1
    the streams i < j   B_j

So one original and one quantized block are in memory, and n blocks are run n^2 + n times: as much
work as n + 1 forward passes. At the end the head is applied to every stream, a few hundred
tokens at a time, and each token's distribution is compared with the reference's.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from q2n.data.windows import TokenWindows
from q2n.errors import NumericalError
from q2n.evaluation.block_by_block import head_and_body
from q2n.evaluation.block_costs import BlockCost, BlockCosts, Change, Replaced
from q2n.evaluation.body import require_fit
from q2n.evaluation.output_change import OutputChange, watched_layers
from q2n.evaluation.per_token import PerToken, compared
from q2n.evaluation.same_model import changed_outside
from q2n.evaluation.scoring import CHUNK
from q2n.evaluation.spread import error_of_mean, window_means
from q2n.linalg.finite import all_finite
from q2n.linalg.forward_products import forward_products
from q2n.logging import Reporter
from q2n.models.blocks import BlockwiseModel
from q2n.models.calls import BlockOutput
from q2n.models.head import HeadCall, states_in
from q2n.patterns import listed
from q2n.pipeline.activations import Place, activations
from q2n.pipeline.options import LoopOptions
from q2n.pipeline.streams import Stream, open_streams

MOST_IN_MEMORY = 2**32
"""Bytes of states; more go to the disk."""


def block_costs(
    original: BlockwiseModel,
    quantized: BlockwiseModel,
    windows: TokenWindows,
    *,
    batch_size: int,
    reporter: Reporter,
) -> BlockCosts:
    """What each block and each layer of a quantized model costs.

    Args:
        original: in the basis of the quantized one.
        batch_size: windows in one pass through a block.

    Raises:
        InputError: the two are not one model, or the windows do not fit it.
        NumericalError: a divergence is not finite.
    """
    start, notes = time.perf_counter(), []
    if changed := changed_outside(original, quantized):
        notes.append(
            "Tensors outside the blocks differ too, and are the original's in every figure: "
            f"{listed(changed)}"
        )
    needed = states_bytes(original, windows)
    place: Place = "disk" if needed > MOST_IN_MEMORY else "cpu"
    if place == "disk":
        notes.append(f"{needed / 2**30:.1f} GB of states lie on the disk; TMPDIR says where")
    for note in notes:
        reporter.note(note)
    with (
        TemporaryDirectory(prefix="q2n-states-") as folder,
        reporter.bar("blocks run", block_runs(len(original))) as bar,
        forward_products(original.device),
    ):
        streams = ReplacedBlocks(
            original, quantized, windows, batch_size=batch_size, place=place, folder=Path(folder)
        )
        costs = streams.measure(bar.advance, reporter.note)
    return BlockCosts(
        reference=original.source.label,
        blocks=tuple(costs),
        label=windows.label,
        protocol=windows.protocol,
        sha256=windows.sha256,
        windows=len(windows),
        length=windows.length,
        seconds=time.perf_counter() - start,
        notes=tuple(notes),
    )


def states_bytes(model: BlockwiseModel, windows: TokenWindows) -> int:
    """Of all streams together."""
    width = model.source.config.get_text_config().hidden_size
    return 2 * len(model) * windows.tokens.numel() * width * model.source.dtype.itemsize


class ReplacedBlocks:
    """Two models with the same blocks, block by block.

    Args:
        batch_size: windows in one pass through a block.
        place: where the streams lie: 2 n + 1 of them, windows x length x width each.
        folder: holds them if they lie on the disk.

    Raises:
        InputError: the windows do not fit the model.
    """

    def __init__(
        self,
        original: BlockwiseModel,
        quantized: BlockwiseModel,
        windows: TokenWindows,
        *,
        batch_size: int,
        place: Place,
        folder: Path,
    ):
        self.original, self.quantized, self.windows = original, quantized, windows
        self.folder, self.options = folder, LoopOptions(batch_size=batch_size, activations=place)
        require_fit(original.without_blocks, windows)
        self.alone: list[Stream] = []
        self.prefix: list[Stream] = []
        """Stream `up to here i`, by i."""

    @torch.no_grad()
    def measure(
        self, progress: Callable[[int], None], say: Callable[[str], None] | None = None
    ) -> list[BlockCost]:
        """The costs of all blocks, in order.

        Args:
            progress: called with the number of block runs that are done, `block_runs` in all.
            say: told once how long it will take.

        Raises:
            NumericalError: a divergence is not finite.
        """
        names = [self.original.block_name(index) for index in range(len(self.original))]
        [reference] = open_streams(
            self.original, self.windows.tokens, ["reference"], self.options, self.folder
        )
        found = []
        for index in range(len(names)):
            start = time.perf_counter()
            found.append(self._pass_block(index, reference))
            progress(block_runs(index + 1) - block_runs(index))
            if index == 0 and say is not None:
                say(_estimate(len(names), time.perf_counter() - start))
        scores = self._scores(reference)
        costs = [
            BlockCost(
                block=name,
                layers=layers,
                alone=self._replaced(name, alone, scores[id(self.alone[index])]),
                up_to_here=self._replaced(name, prefix, scores[id(self.prefix[index])]),
            )
            for index, (name, (layers, alone, prefix)) in enumerate(zip(names, found, strict=True))
        ]
        for stream in (reference, *self._replacements()):
            stream.close()
        return costs

    def _pass_block(
        self, index: int, reference: Stream
    ) -> tuple[dict[str, Change], OutputChange, OutputChange]:
        """All streams through one block: the changes of its layers, of its output when it alone is
        quantized, and when all up to it are."""
        original, quantized = self.original.load_block(index), self.quantized.load_block(index)
        earlier = self._replacements()
        alone = self._beside(reference, f"alone-{index}")
        prefix = self._beside(reference, f"prefix-{index}") if index else alone
        before = self.prefix[-1] if index else reference
        changes = OutputChange(), OutputChange()
        with watched_layers(original, quantized) as layers:
            for batch in range(len(reference)):
                inputs = reference.inputs(batch, index)
                alone.put(batch, inputs.run(quantized))
                if index:
                    prefix.put(batch, before.inputs(batch, index).run(quantized))
                reference.put(batch, inputs.run(original))
                expected = reference.hidden.get(batch)
                for stream, change in zip((alone, prefix), changes, strict=True):
                    change.add(expected, stream.hidden.get(batch).float() - expected.float())
        for stream in earlier:
            for batch in range(len(stream)):
                stream.put(batch, stream.inputs(batch, index).run(original))
        self.alone.append(alone)
        self.prefix.append(prefix)
        block = self.original.block_name(index)
        reached = {
            f"{block}.{x}": Change.of(change) for x, change in layers.items() if change.tokens
        }
        return reached, *changes

    def _replacements(self) -> list[Stream]:
        """Each of them once: with the first block quantized, `alone` and `up to here` are one."""
        return [*self.alone, *self.prefix[1:]]

    def _beside(self, reference: Stream, name: str) -> Stream:
        """A stream of the same text, not filled yet."""
        place, device = self.options.activations, self.original.device
        return Stream(
            activations(place, device, self.folder / name),
            reference.tokens,
            reference.calls,
            reference.windows,
            [{} for _ in range(len(reference))],
        )

    def _scores(self, reference: Stream) -> dict[int, PerToken]:
        """Every stream, by identity, compared with the reference token by token."""
        streams = self._replacements()
        head, body = head_and_body(self.original, self.windows)
        for stream in (reference, *streams):
            self._finish(stream, body)
        parts: dict[int, list[PerToken]] = {id(stream): [] for stream in streams}
        for batch, row, rows, targets in self._chunks(head):
            expected = head(reference.hidden.get(batch)[row, rows])
            for stream in streams:
                logits = head(stream.hidden.get(batch)[row, rows])
                parts[id(stream)].append(compared(logits, expected, targets))
        return {key: PerToken.joined(found) for key, found in parts.items()}

    def _finish(self, stream: Stream, body: nn.Module) -> None:
        """What the head reads in the place of what the last block left."""
        for batch, tokens in enumerate(self.windows.tokens.split(self.options.batch_size)):
            output = self.original.run_after(tokens, stream.hidden.get(batch), body)
            stream.put(batch, BlockOutput(states_in(output), {}))

    def _chunks(self, head: HeadCall) -> Iterator[tuple[int, int, slice, Tensor]]:
        """Batch, window in it, tokens from which others are predicted, and those others: so few
        that their logits fit into `CHUNK`."""
        step, windows = max(1, CHUNK // head.words), self.windows
        for number, (tokens, count) in enumerate(
            zip(windows.tokens, windows.scored.tolist(), strict=True)
        ):
            batch, row = divmod(number, self.options.batch_size)
            for first in range(windows.length - count - 1, windows.length - 1, step):
                last = min(first + step, windows.length - 1)
                yield batch, row, slice(first, last), tokens[first + 1 : last + 1]

    def _replaced(self, name: str, output: OutputChange, scores: PerToken) -> Replaced:
        means = window_means(scores.divergence, self.windows.scored)
        if not all_finite(means):
            raise NumericalError(
                f"the divergence behind {name} is not finite: the model's weights or activations "
                "are not; try --dtype float32"
            )
        return Replaced(
            output=Change.of(output),
            divergence=float(scores.divergence.mean()),
            divergence_error=error_of_mean(means),
            same_top=float(scores.same_top.double().mean()),
        )


def block_runs(blocks: int) -> int:
    """How often blocks are run for so many of them: alone 0 and up to here 0 are one stream."""
    return blocks * (blocks + 1)


def _estimate(blocks: int, first: float) -> str:
    """In words, from the seconds of the first block: two runs, and the products of its linears
    twice more."""
    runs = block_runs(blocks)
    return (
        f"{blocks} blocks are run {runs} times, as much work as {blocks + 1} forward passes (about "
        f"{first / 4 * runs / 60:.1f} minutes), and the head {2 * blocks} times"
    )
