"""The block loop: each block takes its turn, and its outputs are the next block's inputs.

    the embeddings' outputs open the streams
    for each block:
        finished before:  its weights are read back, and the streams run through it
        else:             it passes the stages of `block_stages`

The inputs come from the quantized prefix. Where a method asks for cross moments, or gradient steps
are taken on the block, a second stream carries what the full-precision model has at the same place.
A finished block of an interrupted run is not quantized again.

Each of several ranks runs its share of the windows through all blocks, and the block's turn has
stages in which they meet (among_ranks.py). The first rank alone reads and writes the store.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from q2n.data.windows import TokenWindows
from q2n.disk.folders import remove_empty
from q2n.distributed.ranks import ALONE, Ranks
from q2n.distributed.shares import share
from q2n.errors import InputError
from q2n.linalg.required_statistics import RequiredStatistics
from q2n.logging import Bar, Reporter
from q2n.method import Method
from q2n.models.blocks import BlockwiseModel
from q2n.models.targets import targets_in
from q2n.pipeline.activations import FOLDER
from q2n.pipeline.among_ranks import read_by_first
from q2n.pipeline.block_stages import block_stages, run_stages
from q2n.pipeline.block_state import enter_block, set_norm_weights
from q2n.pipeline.finish import Store
from q2n.pipeline.options import LoopOptions
from q2n.pipeline.output_gradients import stored_gradients
from q2n.pipeline.passes import PausingBlock
from q2n.pipeline.rewrite_block import RewriteBlock
from q2n.pipeline.stopwatch import Stopwatch
from q2n.pipeline.store import RunStore
from q2n.pipeline.streams import Probe, Stream, StreamThroughBlock, open_streams
from q2n.pipeline.write_behind import When, WriteBehind, now
from q2n.refit.block import BlockRefit

PROBE_LENGTH = 8
"""Tokens of the short window on which the sites of a block are looked up."""


class SequentialLoop:
    """Quantizes the blocks of one model in order."""

    def __init__(
        self,
        model: BlockwiseModel,
        method: Method,
        store: RunStore,
        options: LoopOptions,
        *,
        scale_dtype: torch.dtype = torch.float32,
        refit: BlockRefit | None = None,
        rewrite: RewriteBlock | None = None,
        reporter: Reporter | None = None,
        ranks: Ranks = ALONE,
    ):
        self.ranks = ranks
        self.model, self.store, self.options = model, store, options
        self.reporter = reporter or Reporter()
        self.stopwatch, self._behind = Stopwatch(), WriteBehind()
        self.required = method.required_statistics
        self.is_rewritten = rewrite is not None
        fits = refit is not None or method.fits_blocks
        self.reads_text = bool(self.required) or fits or self.is_rewritten
        self.two_streams = RequiredStatistics.CROSS in self.required or fits
        self.method_name, self.reads_gradients = method.name, method.reads_gradients
        self.stages = block_stages(
            method,
            options,
            refit,
            rewrite,
            device=model.device,
            scale_dtype=scale_dtype,
            store=Store(store, self._when, self.stopwatch, self.reporter),
            ranks=ranks,
        )

    def run(self, windows: TokenWindows | None, finished: int = 0) -> None:
        """Quantize every block after the first `finished` ones and store each.

        Args:
            windows: calibration text; None only for a method that needs no statistics.
            finished: blocks that the store already holds.

        Raises:
            InputError: options that do not fit the model, or a layer that no token reached.
            NumericalError: NaN, Inf or an indefinite Hessian, with the layer's name.
            RankError: another rank has ended.
        """
        if windows is None and self.reads_text:
            who = "a rewrite" if self.is_rewritten else f"method {self.method_name}"
            raise InputError(f"{who} needs calibration text: give --corpus")
        if finished == len(self.model):
            return
        self.stopwatch.lap()
        with torch.no_grad(), self.reporter.bar("blocks", len(self.model), finished) as bar:
            probe = Probe(next(self.model.record_inputs([_probe_tokens(windows)])))
            with self._streams(windows) as streams, self._behind:
                for index in range(len(self.model)):
                    say = partial(self._say, bar)
                    if index < finished:
                        self._replay(index, streams, probe, say)
                    else:
                        self._quantize(index, streams, probe, say)
                        bar.advance()

    @property
    def _when(self) -> When:
        """Blocks are stored behind the work of another device, but not of the CPU, from which the
        thread would take time and memory."""
        return now if self.model.device.type == "cpu" else self._behind

    def _say(self, bar: Bar, text: str) -> None:
        """Tell people what is being done, and the other ranks."""
        bar.detail(text)
        self.ranks.at(text)

    def _quantize(
        self,
        index: int,
        streams: Sequence[Stream],
        probe: Probe,
        say: Callable[[str], None],
    ) -> None:
        """A block's turn; when it ends, nothing of the block stays in memory."""
        state = enter_block(
            self.model,
            index,
            streams,
            probe,
            say,
            options=self.options,
            required=self.required,
            rewritten=self.is_rewritten,
        )
        self.model.read_ahead(index + 1)
        if self.reads_gradients:
            found = stored_gradients(self.store, self.ranks, self.model, index)
            state = replace(state, gradients=found)
        run_stages(self.stages, state)

    def _replay(
        self,
        index: int,
        streams: Sequence[Stream],
        probe: Probe,
        say: Callable[[str], None],
    ) -> None:
        """Take a finished block's weights from the store and run the streams through it."""
        if not (streams or probe.needs(index)) or index + 1 == len(self.model):
            return
        name, block = self.model.block_name(index), self.model.load_block(index)
        originals = [deepcopy(block) for _ in streams[1:]]
        self.model.read_ahead(index + 1)
        say(f"{name}: finished before, running through it")
        targets, prefix = targets_in(block), f"{name}."
        layers = read_by_first(self.ranks, partial(self.store.read_block, index))
        for layer_name, layer in layers.items():
            targets[layer_name.removeprefix(prefix)].set(layer.dequantize())
        norms = self.store.read_norm_weights(index) if self.ranks.is_first else {}
        set_norm_weights(block, {key.removeprefix(prefix): x for key, x in norms.items()})
        probe.advance(index, block)
        for stream, each in zip(streams, [block, *originals], strict=False):
            StreamThroughBlock(stream, PausingBlock(each, []), index).finish()

    @contextmanager
    def _streams(self, windows: TokenWindows | None) -> Iterator[Sequence[Stream]]:
        """The quantized prefix's block inputs, and the full-precision ones if asked for; none
        without text."""
        names = ["quantized", "full"] if self.two_streams else ["quantized"]
        streams = [] if windows is None or not self.reads_text else self._opened(windows, names)
        try:
            yield streams
        finally:
            for stream in streams:
                stream.close()
            if not self.ranks.is_first:  # on another machine nobody else removes the folder
                remove_empty(self._own_folder(), self.store.folder)

    def _opened(self, windows: TokenWindows, names: Sequence[str]) -> list[Stream]:
        """Streams of this rank's windows."""
        own = None
        if self.ranks.are_several:
            own = share(len(windows), self.options.batch_size, self.ranks.rank, self.ranks.size)
        folder = self._own_folder()
        return open_streams(self.model, windows.tokens, names, self.options, folder, own)

    def _own_folder(self) -> Path:
        """Of this rank's streams."""
        folder = self.store.folder / FOLDER
        return folder / f"rank-{self.ranks.rank}" if self.ranks.are_several else folder


def _probe_tokens(windows: TokenWindows | None) -> Int[Tensor, "1 length"]:
    if windows is None:
        return torch.arange(PROBE_LENGTH).unsqueeze(0)
    return windows.tokens[:1, :PROBE_LENGTH]
