"""The block loop: measure a block's inputs, quantize it, write it, pass its outputs on.

    for each block:
        for each round of sites:      one site with true_sequential, else all at once
            passes run to the sites and their inputs become statistics
            every linear of the sites is quantized and takes its new weight
        scales and norm gains are refitted to the block's output, if asked for
        the block is written
        the passes run to the end: the inputs of the next block

The inputs come from the quantized prefix. Where a method asks for cross moments, or the block is
refitted, a second stream carries what the full-precision model has at the same place. A finished
block of an interrupted run is not quantized again: its weights are read back and the
passes run through it.
"""

import time
from functools import cached_property
from pathlib import Path
from typing import Any
from zlib import crc32

import torch
from torch import Tensor, nn

from q2n.data.windows import TokenWindows
from q2n.errors import InputError
from q2n.layers.quantized import QuantizedLinear
from q2n.linalg.output_error import OutputError
from q2n.linalg.statistics import InputStatistics, RequiredStatistics
from q2n.logging import Bar, Reporter
from q2n.method import LayerProblem, Method
from q2n.models.blocks import BlockCall, BlockwiseModel
from q2n.models.sites import Site, find_sites
from q2n.pipeline.activations import Activations, activations
from q2n.pipeline.options import LoopOptions
from q2n.pipeline.passes import PausingBlock
from q2n.pipeline.store import RunStore
from q2n.pipeline.streams import BlockWindows, Stream, StreamThroughBlock
from q2n.refit.block import BlockRefit

PROBE_LENGTH = 8
"""Tokens of the short window on which the sites of a block are found."""


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
        reporter: Reporter | None = None,
    ):
        self.model, self.method, self.store, self.options = model, method, store, options
        self.refit = refit
        self.scale_dtype = scale_dtype
        self.reporter = reporter or Reporter()
        self._last_lap = 0.0

    def run(self, windows: TokenWindows | None, finished: int = 0) -> None:
        """Quantize every block after the first `finished` ones and store each.

        Args:
            windows: calibration text; None only for a method that needs no statistics.
            finished: blocks that the store already holds.

        Raises:
            InputError: options that do not fit the model.
            NumericalError: NaN, Inf or an indefinite Hessian, with the layer's name.
        """
        if windows is None and (self.method.required_statistics or self.refit is not None):
            raise InputError(f"method {self.method.name} needs calibration text: give --corpus")
        self.lap()
        with torch.no_grad(), self.reporter.bar("blocks", len(self.model), finished) as bar:
            probe = next(self.model.record_inputs([_probe_tokens(windows)]))
            streams = self._open_streams(windows)
            try:
                for index in range(len(self.model)):
                    stage = _BlockStage(self, index, streams, probe.hidden, probe.calls[index], bar)
                    if index < finished:
                        stage.replay()
                    else:
                        stage.quantize()
                        bar.advance()
            finally:
                for stream in streams:
                    stream.close()

    def lap(self) -> float:
        """Seconds since it was last called: all time is some block's."""
        now = time.perf_counter()
        seconds, self._last_lap = now - self._last_lap, now
        return seconds

    def _open_streams(self, windows: TokenWindows | None) -> list[Stream]:
        """The quantized prefix's block inputs, and the full-precision ones if asked for."""
        if windows is None:
            return []
        two = RequiredStatistics.CROSS in self.method.required_statistics or self.refit is not None
        names = ["quantized", "full"] if two else ["quantized"]
        text, folder = windows.tokens, self.store.folder / "activations"
        streams = [Stream(self._activations(folder / name), text.numel()) for name in names]
        batches = text.split(self.options.batch_size)
        for number, inputs in enumerate(self.model.record_inputs(batches)):
            for stream in streams:
                stream.hidden.put(number, inputs.hidden)
                stream.calls.append(inputs.calls)
        return streams

    def _activations(self, folder: Path) -> Activations:
        return activations(self.options.activations, self.model.device, folder)


class _BlockStage:
    """One block's turn in the loop."""

    def __init__(
        self,
        loop: SequentialLoop,
        index: int,
        streams: list[Stream],
        probe: Tensor,
        probe_call: BlockCall,
        bar: Bar,
    ):
        self.loop, self.index, self.streams, self.bar = loop, index, streams, bar
        self.name = loop.model.block_name(index)
        self.probe, self.probe_call = probe, probe_call
        self.is_last = index + 1 == len(loop.model)

    @cached_property
    def block(self) -> nn.Module:
        """The block that takes the quantized weights."""
        return self.loop.model.load_block(self.index)

    @cached_property
    def sites(self) -> list[Site]:
        """Which of its linears share an input; found while its weights are the original ones."""
        return find_sites(self.block, self.probe, self.probe_call)

    def replay(self) -> None:
        """Take a finished block's weights from the store and run the streams through it."""
        if not self.streams or self.is_last:
            return
        self.bar.detail(f"{self.name}: finished before, running through it")
        originals = self._full_precision_blocks()
        for name, layer in self.loop.store.read_block(self.index).items():
            self._set_weight(name.removeprefix(f"{self.name}."), layer)
        self._set_gains(self.loop.store.read_gains(self.index))
        for stream, block in zip(self.streams, [self.block, *originals], strict=True):
            StreamThroughBlock(stream, PausingBlock(block, []), self.index).finish()

    def quantize(self) -> None:
        """Quantize the block, store it, and run the streams through it."""
        blocks = [self.block, *self._full_precision_blocks()]
        pausing = [PausingBlock(block, self.sites) for block in blocks]
        passes = [
            StreamThroughBlock(stream, block, self.index)
            for stream, block in zip(self.streams, pausing, strict=False)
        ]
        layers: dict[str, QuantizedLinear] = {}
        for sites in self._rounds():
            for site, statistics in self._measure(sites, passes).items():
                layers |= self._quantize_site(self.sites[site], statistics)
        found: dict[str, Any] = {}
        gains: dict[str, Tensor] = {}
        if self.loop.refit is not None:
            layers, gains, found = self._refit(layers, passes)
        facts = {
            "block": self.name,
            "seconds": self.loop.lap(),
            "never_called": self._never_called(),
            **found,
        }
        self.loop.store.write_block(self.index, layers, facts, gains)
        self.bar.detail(f"{self.name}: outputs")
        for stream in passes:
            stream.drop() if self.is_last else stream.finish()
        self.loop.reporter.event("block", block=self.name, seconds=facts["seconds"])

    def _refit(
        self, layers: dict[str, QuantizedLinear], passes: list[StreamThroughBlock]
    ) -> tuple[dict[str, QuantizedLinear], dict[str, Tensor], dict[str, Any]]:
        """Layers and gains tuned toward the full-precision block's outputs, which the second
        stream then already holds. The quantized stream's passes start again."""
        assert self.loop.refit is not None
        self.bar.detail(f"{self.name}: refit")
        quantized, full = passes
        quantized.drop()
        full.finish()
        own = {name.removeprefix(f"{self.name}."): layer for name, layer in layers.items()}
        windows = BlockWindows(quantized.stream, full.stream, self.index)
        tuned = self.loop.refit(
            self.block, own, windows, len(windows), name=self.name, seed=self._seed(self.name)
        )
        for name, layer in tuned.layers.items():
            self._set_weight(name, layer)
        gains = {f"{self.name}.{name}": gain for name, gain in tuned.gains.items()}
        self._set_gains(gains)
        del passes[1]
        layers = {f"{self.name}.{name}": layer for name, layer in tuned.layers.items()}
        return layers, gains, {"refit_loss": [tuned.losses[0], tuned.losses[-1]]}

    def _rounds(self) -> list[list[int]]:
        """Sites that are measured before any of their linears is quantized."""
        order = list(range(len(self.sites)))
        return [[site] for site in order] if self.loop.options.true_sequential else [order]

    def _measure(
        self, sites: list[int], passes: list[StreamThroughBlock]
    ) -> dict[int, InputStatistics | None]:
        """Statistics of some sites' inputs over all batches."""
        if not self.loop.method.required_statistics:
            return dict.fromkeys(sites)
        statistics = {site: self._new_statistics(self.sites[site].width) for site in sites}
        self.bar.detail(f"{self.name}: inputs of {self.sites[sites[0]].linears[0]}")
        for batch in range(len(self.streams[0])):
            running = [stream.take(batch) for stream in passes]
            for site in sites:
                inputs, *full = [one.input_at(site) for one in running]
                if inputs is not None:  # an idle expert gets none
                    statistics[site].update(inputs, *full)
            for stream, one in zip(passes, running, strict=True):
                if len(sites) == 1:
                    stream.keep(batch, one)
                else:  # it has used weights that are about to change
                    one.close()
        return dict(statistics)

    def _new_statistics(self, width: int) -> InputStatistics:
        loop = self.loop
        stride = loop.options.cross_stride(self.streams[0].tokens, width)
        return InputStatistics(
            width, loop.method.required_statistics, loop.model.device, cross_stride=stride
        )

    def _quantize_site(
        self, site: Site, statistics: InputStatistics | None
    ) -> dict[str, QuantizedLinear]:
        if statistics is not None:
            statistics.require_finite(f"{self.name}.{site.linears[0]}")
        return {
            f"{self.name}.{name}": self._quantize_linear(name, statistics) for name in site.linears
        }

    def _quantize_linear(self, name: str, statistics: InputStatistics | None) -> QuantizedLinear:
        full_name = f"{self.name}.{name}"
        self.bar.detail(full_name)
        weight = self._linear(name).weight.float()
        start = time.perf_counter()
        problem = LayerProblem(
            name=full_name,
            weight=weight,
            statistics=statistics,
            scale_dtype=self.loop.scale_dtype,
            seed=self._seed(full_name),
        )
        layer = self.loop.method.quantize(problem)
        found: dict[str, Any] = {"seconds": time.perf_counter() - start}
        if statistics is not None and "output_error" not in layer.record:
            moments = OutputError.of(weight, layer.dequantize(), statistics.gram)
            found["output_error"] = moments.relative()
        self._set_weight(name, layer)  # `weight` may be the very tensor that this overwrites
        return layer.with_record(**found)

    def _seed(self, name: str) -> int:
        return crc32(name.encode()) ^ self.loop.options.seed

    def _set_weight(self, name: str, layer: QuantizedLinear) -> None:
        self._linear(name).weight.copy_(layer.dequantize())

    def _set_gains(self, gains: dict[str, Tensor]) -> None:
        for name, gain in gains.items():
            self.block.get_parameter(name.removeprefix(f"{self.name}.")).copy_(gain)

    def _linear(self, name: str) -> nn.Linear:
        linear = self.block.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        return linear

    def _full_precision_blocks(self) -> list[nn.Module]:
        return [self.loop.model.load_block(self.index) for _ in self.streams[1:]]

    def _never_called(self) -> list[str]:
        called = {name for site in self.sites for name in site.linears}
        return [
            f"{self.name}.{name}"
            for name, module in self.block.named_modules()
            if isinstance(module, nn.Linear) and name not in called
        ]


def _probe_tokens(windows: TokenWindows | None) -> Tensor:
    if windows is None:
        return torch.arange(PROBE_LENGTH).unsqueeze(0)
    return windows.tokens[:1, :PROBE_LENGTH]
