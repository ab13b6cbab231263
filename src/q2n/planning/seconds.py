"""How long each stage takes: operations and bytes over rates.

    load       the checkpoint once for its checksum, each block once more
    rotate     of a learned rotation: 3 passes a gradient step, and 3 products of every weight with
               the rotation
    allocate   where widths are found: measuring and solving of the trials, a pass forward, and one
               forward and back with gradients of weights; the inputs of all blocks to the disk and
               twice back; errors along gradients
    gradients  where the method reads them: a pass forward, and one forward and back without
               gradients of weights; 0.56 of 2 T o^2 for each output; block inputs as above
    measure    2 operations for each weight that a token meets, attention over half of all pairs of
               tokens; 0.56 of a Gram matrix's 2 T m^2; cross moments of a part of the tokens (on a
               GPU in half precision, the latter in two parts: linalg/products.py);
               the product of each window added to a sum in float64. Where passes do not stay
               paused, the front of the block again for every round. For a rewrite one more pass
               and Gram matrices of its own
    solve      what the method and a rewrite say of themselves (`Method.work`, `Rewrite.work`,
               `Rewrite.passes`)
    refit      3 passes a gradient step: forward, backward twice; of the method's own fits too
    write      finished blocks to the disk and back, the checkpoint to the disk
    evaluate   the text through both models and their heads, which are read from the disk

Each stage has parts, which add up; the longest is what it is bound by. What overlaps in fact (the
next block read ahead by the system) makes a run faster than that.
"""

from collections.abc import Mapping
from math import ceil

from q2n.linalg.required_statistics import RequiredStatistics
from q2n.planning import gradients
from q2n.planning.load import Load
from q2n.planning.memory import FLOAT, HALF, MemoryOfStages
from q2n.planning.rates import Rates
from q2n.planning.shapes import BlockShape, ModelShapes, Number, SiteShape

TRIANGLE = 0.56
"""Of a Gram matrix's operations: its upper triangle in panels (docs/LOG.md)."""
MOVED = 3
"""Bytes for each byte of a sum: the product in float32 written and read, the sum read and
written."""

Parts = Mapping[str, Number]
"""Seconds by what takes them: computing, memory, disk, link, exchange."""


class SecondsOfStages:
    """The time of the stages of one run on one model."""

    def __init__(self, shapes: ModelShapes, load: Load, rates: Rates, memory: MemoryOfStages):
        self.shapes, self.run, self.rates, self.memory = shapes, load, rates, memory

    def load(self) -> Parts:
        """Weights from the disk to the device."""
        inside = sum(block.bytes for block in self.shapes.blocks)
        copies = inside + self.shapes.outside_bytes
        return {"disk": (self.shapes.bytes + copies) / self.rates.disk, **self._moved(copies)}

    def allocate(self) -> Parts:
        """Widths of layers, if they are to be found."""
        trials = self.run.trials
        if trials is None:
            return {}
        trial = SecondsOfStages(self.shapes, trials, self.rates, self.memory.of_trials())
        measured, solved = trial.measure(), trial.solve()["computing"]
        passes = 4 * sum(self._pass(block, trials.tokens) for block in self.shapes.blocks)
        head = 6 * self.shapes.words * self.shapes.hidden * trials.tokens
        along = trials.windows * trials.widths * sum(x.quantized for x in self.shapes.blocks)
        inputs = len(self.shapes.blocks) * trials.tokens * self.shapes.hidden * self.shapes.itemsize
        return {
            **measured,
            "computing": measured["computing"]
            + trials.widths * solved
            + (passes + head) / self.rates.product,
            "memory": measured["memory"] + MOVED * FLOAT * along / self.rates.memory,
            "disk": 3 * inputs / self.rates.disk,
        }

    def gradients(self) -> Parts:
        """Gradients at all outputs, if the method reads them."""
        if not self.run.gradients:
            return {}
        shapes, tokens = self.shapes, self.run.gradient_tokens
        through = sum(self._pass(block, tokens) for block in shapes.blocks)
        done = gradients.operations(shapes, self.run, through, TRIANGLE)
        summed = sum(block.output_moments for block in shapes.blocks)
        inputs = len(shapes.blocks) * tokens * shapes.hidden * shapes.itemsize
        return {
            "computing": done / self.rates.product,
            "memory": MOVED * FLOAT * self.run.gradient_windows * summed / self.rates.memory,
            "disk": (2 * inputs + HALF * summed) / self.rates.disk,
        }

    def measure(self) -> Parts:
        """Passes and statistics."""
        passes = sum(map(self._of_all_streams, self.shapes.blocks))
        sites = [site for block in self.shapes.blocks for site in block.sites]
        sums, added = sum(map(self._statistics, sites)), sum(map(self._added, sites))
        if self.run.rewrite is not None:
            passes += sum(self._pass(block, self.run.tokens) for block in self.shapes.blocks)
            sums += sum(map(self._gram, sites))
        batches = self.run.windows / self.run.options.batch_size
        inside = sum(block.bytes for block in self.shapes.blocks)
        read = self.run.streams * batches * inside / self.rates.memory
        in_half = self._halves_are_factors
        computing = passes / self.rates.product
        computing += sums / (self.rates.product if in_half else self.rates.float32)
        return {
            "computing": computing / self.run.ranks,
            "memory": (max(0.0, read - computing) + added / self.rates.memory) / self.run.ranks,
            "exchange": self._exchanged(),
        }

    def solve(self) -> Parts:
        """Every layer, divided among the devices as far as there are layers."""
        work = self.run.work
        operations = 0.0
        for site in (site for block in self.shapes.blocks for site in block.sites):
            rows = max(matrix.rows for matrix in site.matrices)
            layers = ceil(site.copies * len(site.matrices) / self.run.ranks)
            factors = ceil(site.copies / self.run.ranks)
            products = work.layer + (self.run.rewrite or 0.0)
            operations += layers * rows * site.width * (2 * site.width * products + work.weight)
            operations += layers * 2 * rows**2 * (rows * work.output + site.width * work.rows)
            operations += 2 * site.width**3 * (layers * work.alone + factors * work.site)
        judged = sum(self._pass(block, self.run.length) for block in self.shapes.blocks)
        passes = self.run.rewrite_passes * judged / self.rates.product
        return {"computing": operations / self.rates.float32 + passes}

    def refit(self) -> Parts:
        """Gradient steps of a window each."""
        forward = sum(self._pass(block, self.run.length) for block in self.shapes.blocks)
        head = 2 * self.shapes.words * self.shapes.hidden * self.run.length
        steps = self.run.block_steps * forward + self.run.model_refit * (forward + head)
        return {"computing": 3 * steps / self.rates.product}

    def rotate(self) -> Parts:
        """Gradient steps of a learned rotation, a window each. A weight is turned on each side that
        meets the stream; its slope goes back to the turn."""
        shapes, length = self.shapes, self.run.length
        forward = sum(self._pass(block, length) for block in shapes.blocks)
        head = 2 * shapes.words * shapes.hidden * length
        turns = sum(2 * block.quantized * shapes.hidden for block in shapes.blocks)
        return {
            "computing": 3 * self.run.rotation_steps * (forward + head + turns) / self.rates.product
        }

    def write(self) -> Parts:
        """Finished blocks and the checkpoint."""
        finished = sum(map(self.memory.finished, self.shapes.blocks))
        return {"disk": (2 * finished + self.memory.checkpoint()) / self.rates.disk}

    def evaluate(self) -> Parts:
        """Both models over the text."""
        if not self.run.evaluated:
            return {}
        length = self.run.evaluated_length
        tokens = self.run.evaluated * length
        passes = sum(self._pass(block, tokens, length) for block in self.shapes.blocks)
        heads = (3 if self.run.divergence else 2) * 2 * self.shapes.words * self.shapes.hidden
        read = self.shapes.bytes + self.memory.checkpoint()
        return {
            "computing": (2 * passes + heads * tokens) / self.rates.product / self.run.ranks,
            "disk": read / self.rates.disk,
            **self._moved(2 * self.shapes.bytes),
        }

    def _moved(self, count: Number) -> Parts:
        return {"link": count / self.rates.link} if self.run.on_device else {}

    def _of_all_streams(self, block: BlockShape) -> Number:
        """Operations of all passes of all streams: one that no site reads runs once to the end."""
        at_sites = self.run.streams_at_sites
        whole = self._pass(block, self.run.tokens)
        return at_sites * self._passes(block) + (self.run.streams - at_sites) * whole

    def _passes(self, block: BlockShape) -> Number:
        """Operations of all passes of a stream through a block."""
        whole = self._pass(block, self.run.tokens)
        rounds = self.memory.rounds(block)
        if self.memory.keeps_passes or not self.run.options.true_sequential:
            return whole if self.run.options.true_sequential else 2 * whole
        fronts, front = 0.0, 0.0
        for sites in rounds:
            fronts += front
            front += sum(x.copies * x.share * m.rows * m.columns for x in sites for m in x.matrices)
        return whole + 2 * self.run.tokens * fronts

    def _pass(self, block: BlockShape, tokens: Number, length: int | None = None) -> Number:
        """Operations of tokens in windows of a length, by default that of calibration."""
        return tokens * (2 * block.active + block.per_pair * (length or self.run.length) / 2)

    def _gram(self, site: SiteShape) -> Number:
        """Operations of the Gram matrices of one site and its copies."""
        return site.copies * 2 * site.width**2 * TRIANGLE * self.run.tokens * site.share

    def _statistics(self, site: SiteShape) -> Number:
        """Operations of the sums of one site and its copies."""
        required, width = self.run.required, site.width
        if not required:
            return 0.0
        tokens = self.run.tokens * site.share
        counted = 0.0
        if RequiredStatistics.CROSS in required:
            counted = tokens / self.run.options.cross_stride(self.run.tokens, width)
        counted *= 2 if self._halves_are_factors else 1
        moments = width + self.run.writes(site, self.shapes.hidden)
        return site.copies * 2 * width * (width * TRIANGLE * tokens + moments * counted)

    @property
    def _halves_are_factors(self) -> bool:
        """Whether moments are products of the model's own half precision."""
        return self.run.on_device and self.shapes.itemsize == 2

    def _added(self, site: SiteShape) -> Number:
        """Bytes moved while products of windows, of an expert's tokens those of batches, are added
        to the sums of one site and its copies."""
        options, windows = self.run.options, self.run.windows
        products = windows if site.copies == 1 else ceil(windows / options.batch_size)
        return MOVED * site.copies * products * self.run.sums(site, self.shapes.hidden)

    def _exchanged(self) -> Number:
        """Sums are added up over the devices, in a ring."""
        ranks = self.run.ranks
        sites = (site for block in self.shapes.blocks for site in block.sites)
        size = sum(x.copies * self.run.sums(x, self.shapes.hidden) for x in sites)
        return 2 * (ranks - 1) / ranks * size / self.rates.between
