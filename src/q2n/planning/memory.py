"""How much memory each stage of a run holds at most, and how much disk.

    always     libraries; embeddings and what else stands outside of the blocks
    load       one tensor beside its copy while it is read and checked; or the next block beside
               what stands from the one before
    rotate     of a learned rotation: the model, its weights as they are turned, and what a backward
               pass keeps of one window
    allocate   where widths are found: a trial's measuring and solving, and the gradients beside
               it; or the errors at all widths, and what a backward pass keeps of one window
    measure    the block, once for each stream; block inputs; what paused passes hold; one batch in
               full; the Gram matrices of one round of sites, or those that a rewrite measures
               together
    solve      the same, for the allocator keeps what the batch took; the matrices that a method
               works with
    refit      latent codes, what a backward pass keeps of one window, and the outputs to reach; or
               the whole model
    write      a finished block, and one tensor beside its copy
    evaluate   the head; one block; the states of all windows; logits of a few tokens

What lies on a device with a memory of its own, and what on the host: blocks, statistics, passes and
work on the device, block inputs where `--activations` says.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import ceil

from q2n.evaluation.scoring import CHUNK
from q2n.formats.shards import SHARD_BYTES
from q2n.linalg.required_statistics import RequiredStatistics, bytes_of_sums
from q2n.pipeline.backward import CHUNK as LOGITS_AT_ONCE
from q2n.pipeline.options import GIB
from q2n.planning.load import Load
from q2n.planning.shapes import BlockShape, ModelShapes, Number, SiteShape

FLOAT = 4
"""Bytes of a number in float32, in which statistics and methods compute."""
HALF = 2
"""The same in float16, as errors of trials are kept."""
DOUBLE = 8
"""The same in float64, as a learned rotation is stored."""
SQUARES = 6
"""Matrices [m, m] that a method works with: Gram matrix, factor, eigenvectors, work space."""
LAYERS = 6
"""Copies [o, m] of a layer: its weight, in visiting order, as rounded, their difference, codes."""
LOGITS = 6
"""Tensors of a chunk of logits: both models', their logarithms and products, in float32."""
LOGITS_ON_CPU = 3
"""The same where a CPU compares two models, which it does in slices."""
READ = 1.5
"""Of a tensor that is read beside its copy: the copy, and what the tokenizer's file, parsed,
leaves behind; measured on SmolLM2-135M and Gemma-3-270M."""
LATENT = 16
"""Bytes a weight of a refit: codes, latent codes, their gradient and its two moments."""


@dataclass(frozen=True)
class Held:
    """Bytes on the host and on each device; with a CPU all of them are on the host."""

    host: Number = 0.0
    device: Number = 0.0

    def __add__(self, other: "Held") -> "Held":
        return Held(self.host + other.host, self.device + other.device)


def most(*held: Held) -> Held:
    """The most of each."""
    return Held(max(x.host for x in held), max(x.device for x in held))


class MemoryOfStages:
    """The memory of the stages of one run on one model."""

    def __init__(self, shapes: ModelShapes, load: Load, libraries: Number):
        self.shapes, self.run, self.libraries = shapes, load, libraries
        self.block = max(shapes.blocks, key=lambda block: block.bytes)
        self.always = Held(host=libraries) + self.device(shapes.outside_bytes)

    def of_trials(self) -> "MemoryOfStages":
        """The same of the trial runs, which there must be."""
        assert self.run.trials is not None
        return MemoryOfStages(self.shapes, self.run.trials, self.libraries)

    def of_one_rank(self) -> "MemoryOfStages":
        """The same of a stage that the first rank goes through alone."""
        return MemoryOfStages(self.shapes, replace(self.run, ranks=1), self.libraries)

    def load(self) -> Held:
        """While embeddings or a block are read."""
        largest = max(self.shapes.outside_bytes, self.shapes.head_bytes)
        first = self.always + Held(host=READ * largest)
        return most(first, *(self._standing(block, block.sites[-1:]) for block in self._kinds()))

    def rotate(self) -> Held:
        """While a rotation is learned; nothing where none is."""
        if not self.run.rotation_steps:
            return Held()
        shapes, length = self.shapes, self.run.length
        inside = sum(block.bytes + 2 * block.most.at(length, length) for block in shapes.blocks)
        logits = 4 * length * shapes.words * FLOAT
        return self.always + self.device(shapes.bytes + inside + logits)

    def allocate(self) -> Held:
        """While widths are found; nothing where they are not."""
        trials = self.run.trials
        if trials is None:
            return Held()
        shapes, length, trial = self.shapes, self.run.length, self.of_trials()
        slopes = trial.inputs(trials.tokens * FLOAT // shapes.itemsize, streams=1)
        errors = self.device(trials.widths * HALF * self.block.quantized)
        weighed = self.device(
            2 * self.block.bytes + 3 * self.block.most.at(length, length) + self._weight()
        )
        head = self.drawing()
        return most(
            trial.measure() + slopes,
            trial.solve() + slopes + errors,
            self.always + slopes + errors + weighed,
            self.always + slopes + head,
        )

    def drawing(self) -> Held:
        """While labels are drawn: the head, and a few positions' logits with their gradients."""
        logits = LOGITS * FLOAT * min(LOGITS_AT_ONCE, self.run.length * self.shapes.words)
        return self.device(self.shapes.head_bytes + logits)

    def measure(self) -> Held:
        """While passes run to the sites."""
        if not self.run.windows:
            return self.always + self._blocks()
        found = []
        for block in self._kinds():
            inside = block.most.at(self._batch, self.run.length)
            for sites in [*self.rounds(block), []]:  # the last pass goes to the end
                read = FLOAT * self._batch * sum(site.width for site in sites)
                found.append(self._standing(block, sites) + self.device(inside + read))
            if self.run.rewrite is not None:
                inputs = self.inputs(self.run.tokens, self.run.streams)
                sums = self._rewrite_sums(block)
                found.append(self.always + self._blocks() + inputs + self.device(inside + sums))
        return most(*found)

    def solve(self) -> Held:
        """While the matrices of a round are quantized."""
        return most(
            *(
                self._standing(block, sites)
                + self.device(self._workspace(site) + block.most.at(self._batch, self.run.length))
                + self._moments(block)
                for block in self._kinds()
                for sites in self.rounds(block)
                for site in sites
            ),
            self.always,
        )

    def _moments(self, block: BlockShape) -> Held:
        """Second moments of the outputs of a block, where the method reads them."""
        return Held(host=HALF * block.output_moments) if self.run.gradients else Held()

    def refit(self) -> Held:
        """While gradient steps are taken; nothing where there are none."""
        found = []
        if self.run.block_steps:
            backward = 3 * self.block.most.at(self.run.length, self.run.length)
            latent = LATENT * self.block.quantized
            targets = self.inputs(self.run.tokens, self.run.targets)
            found.append(self._standing(self.block, []) + targets + self.device(backward + latent))
        if self.run.model_refit:
            shapes, length = self.shapes, self.run.length
            latent = LATENT * sum(block.quantized for block in shapes.blocks)
            states = len(shapes.blocks) * length * shapes.hidden * shapes.itemsize
            logits = 4 * length * shapes.words * FLOAT
            inside = self.block.most.at(length, length)
            total = 2 * shapes.bytes + latent + 3 * states + logits + 3 * inside
            found.append(self.always + self.device(total))
        return most(*found) if found else Held()

    def write(self) -> Held:
        """While the checkpoint is written."""
        block = max(self.finished(block) for block in self.shapes.blocks)
        largest = max(self.shapes.outside_bytes, self.shapes.head_bytes)
        return self.always + Held(host=block + max(READ * largest, self._weight()))

    def evaluate(self) -> Held:
        """While the result is measured beside the original."""
        if not self.run.evaluated:
            return Held()
        shapes = self.shapes
        head = shapes.head_bytes or shapes.outside_bytes
        others = shapes.outside_bytes + (2 if self.run.divergence else 1) * shapes.head_bytes
        length = self.run.evaluated_length
        batch = self.run.options.batch_size * length
        states = self.inputs(self.run.evaluated * length, streams=1)
        inside = self.block.bytes + max(self.block.most.at(batch, length), self._weight())
        copies = LOGITS if self.run.on_device else LOGITS_ON_CPU
        logits = copies * FLOAT * min(CHUNK, batch * shapes.words)
        return self.always + states + self.device(others + max(inside, READ * head, logits))

    def disk(self) -> Number:
        """Bytes: finished blocks beside the checkpoint, of which a file is there twice while it is
        written; or beside block inputs before it. Before all that, the inputs of every block where
        widths are found or gradients taken; moments of gradients to the end."""
        finished = sum(map(self.finished, self.shapes.blocks))
        if self.run.model_refit:
            finished *= 2
        inputs = self.run.streams * self._input_bytes(self.run.tokens)
        if self.run.rotation_steps:
            finished += DOUBLE * self.shapes.hidden**2
        spilled = max(0.0, inputs - self.run.options.bytes_in_memory)
        checkpoint = self.checkpoint()
        beside = finished + max(spilled, checkpoint + min(checkpoint, SHARD_BYTES))
        if not self.run.text:
            return beside
        every = (len(self.shapes.blocks) + 1) * self.of_one_rank()._input_bytes(self.run.text)
        return max(beside, every) + sum(self._moments(x).host for x in self.shapes.blocks)

    @property
    def keeps_passes(self) -> bool:
        """Whether paused passes stay alive between rounds: all block inputs are on the device."""
        inputs = self.run.streams * self._input_bytes(self.run.tokens)
        return (
            self.run.options.activations == "device" and inputs <= self.run.options.bytes_in_memory
        )

    def finished(self, block: BlockShape) -> Number:
        """Bytes of a finished block in the working folder."""
        return _layers(block, self.run.sizes.finished.of)

    def checkpoint(self) -> Number:
        """Bytes of all tensors of the checkpoint."""
        written = sum(_layers(block, self.run.sizes.written.of) for block in self.shapes.blocks)
        return self.run.kept_bytes + written

    def rounds(self, block: BlockShape) -> list[Sequence[SiteShape]]:
        """The sites of a block that are measured together."""
        if self.run.options.true_sequential:
            return [[site] for site in block.sites]
        return [block.sites] if block.sites else []

    def statistics(self, site: SiteShape) -> Number:
        """Bytes of the sums of one site; of experts, of as many as are measured together."""
        one = self.run.sums(site, self.shapes.hidden)
        return min(site.copies * one, max(one, self.run.options.expert_memory * GIB))

    def _rewrite_sums(self, block: BlockShape) -> Number:
        """Bytes of the Gram matrices that a rewrite measures together."""
        required = RequiredStatistics.GRAM
        sums = [(x.copies, bytes_of_sums(required, x.width)) for x in block.sites]
        together = sum(copies * size for copies, size in sums)
        largest = max((size for _, size in sums), default=0)
        return min(together, max(largest, self.run.options.expert_memory * GIB))

    @property
    def _batch(self) -> Number:
        """Tokens of a batch."""
        if not self.run.windows:
            return 0.0
        return self._share(min(self.run.options.batch_size, self.run.windows) * self.run.length)

    def _weight(self) -> Number:
        """Bytes of the largest matrix in float32, and of what becomes of it."""
        sizes = (m.rows * m.columns for site in self.block.sites for m in site.matrices)
        return 2 * FLOAT * max(sizes, default=0.0)

    def _kinds(self) -> list[BlockShape]:
        """Blocks that differ."""
        return list(dict.fromkeys(self.shapes.blocks))

    def _blocks(self) -> Held:
        held = self.device(max(1, self.run.streams) * self.block.bytes)
        if self.run.on_device:  # the next block, read ahead; the last one, being written
            held += Held(host=self.block.bytes + 2 * self.finished(self.block))
        return held

    def _standing(self, block: BlockShape, sites: Sequence[SiteShape]) -> Held:
        """Blocks, block inputs, paused passes and the statistics of a round."""
        paused = 0.0
        if self.keeps_passes and self.run.options.true_sequential:
            tokens = self._share(self.run.tokens)
            where = sites or block.sites[-1:]
            held = max((site.held.at(tokens, self.run.length) for site in where), default=0.0)
            paused = self.run.streams_at_sites * held
        sums = sum(map(self.statistics, sites))
        return (
            self.always
            + self._blocks()
            + self.inputs(self.run.tokens, self.run.streams)
            + self.device(paused + sums)
        )

    def _workspace(self, site: SiteShape) -> Number:
        """What a method works with on the largest matrix of a site."""
        rows = max(matrix.rows for matrix in site.matrices)
        squares = SQUARES if self.run.required or self.run.rewrite else 0
        side = max(site.width, rows) if self.run.gradients else site.width
        return FLOAT * (squares * side**2 + LAYERS * rows * site.width)

    def inputs(self, tokens: int, streams: int) -> Held:
        """Block inputs in memory."""
        held = min(streams * self._input_bytes(tokens), self.run.options.bytes_in_memory)
        if self.run.options.activations == "device":
            return self.device(held)
        return Held(host=held)

    def _input_bytes(self, tokens: Number) -> Number:
        return self._share(tokens) * self.shapes.hidden * self.shapes.itemsize

    def _share(self, tokens: Number) -> Number:
        """Tokens of one device: whole windows."""
        return ceil(tokens / self.run.length / self.run.ranks) * self.run.length

    def device(self, held: Number) -> Held:
        """So many bytes on the device, which may be the host."""
        return Held(device=held) if self.run.on_device else Held(host=held)


def _layers(block: BlockShape, size: Callable[[int, int], Number]) -> Number:
    return sum(
        matrix.copies * size(matrix.rows, matrix.columns)
        for site in block.sites
        for matrix in site.matrices
    )
