"""Eigenvalues of what layers read, and where each rule would cut them (Figures 1 and 4 of the Q2N
paper).

    for each block up to the last one asked for:
        for each input site:   measure G, decompose it, keep values and cuts, drop G
        advance                the block's full-precision outputs are the next inputs

These are the stages of a quantization (pipeline/block_stages.py) without the one that quantizes.
The values are those of `G / tokens`, so that they do not grow with the text; the cuts are the same
for any multiple of G. Few of many values are kept: the first 16, and from there on some 200 at
places that stand evenly on a logarithmic axis.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from q2n.config.opening import calibration_of, loop_options, model_of, texts_of
from q2n.config.options import CHANGES
from q2n.config.reading import read_settings
from q2n.data.windows import TokenWindows
from q2n.linalg import spectrum as rules
from q2n.linalg.required_statistics import RequiredStatistics
from q2n.linalg.statistics import InputStatistics
from q2n.logging import Reporter
from q2n.models.blocks import BlockwiseModel
from q2n.pipeline.block_stages import EachRound, run_stages
from q2n.pipeline.block_state import BlockStage, BlockState, enter_block
from q2n.pipeline.finish import advance
from q2n.pipeline.measure import Measure
from q2n.pipeline.options import LoopOptions
from q2n.pipeline.sequential import PROBE_LENGTH
from q2n.pipeline.streams import Probe, open_streams
from q2n.report.experiment import SpectrumRecord
from q2n.report.kinds import kind_names
from q2n.transforms.model_changes import ModelChanges

_ALL, _LATER = 16, 200
"""Values that are all kept, and places among the others."""


class Found(NamedTuple):
    """What was measured, and on what."""

    records: list[SpectrumRecord]
    model_sha256: str
    calibration_sha256: str


def spectra_of(
    settings: Mapping[str, Any],
    layers: Sequence[str],
    reporter: Reporter | None = None,
    *,
    model: PreTrainedModel | None = None,
    tokenizer: Any = None,
) -> Found:
    """One record for each input site of a full-precision model, in the order of calls.

    Args:
        settings: of a run, as for `quantize`. Those that matter are the model's, the calibration
            text's, `ignore`, and the null-space step's threshold, whether a step is taken or not.
        layers: patterns of names of the linears whose inputs are wanted; of a site, the first
            linear that fits names the record.
        model: in the place of the one that the settings name; then give its tokenizer too.

    Raises:
        InputError: settings, model, text or patterns that cannot be used, or a layer that no token
            reached.
        NumericalError: inputs that are not finite, with the layer's name.
    """
    read = read_settings({**settings, "nullspace": "paper", "only": tuple(layers)})
    changes = ModelChanges(**read.options[CHANGES])
    opened = model_of(read.run, read.run.model if model is None else model, changes)
    windows = calibration_of(read.run, opened, texts_of(read.run, opened, tokenizer))
    kinds = kind_names(opened.blocks.targets())
    spectra = KeepSpectra(read.options["nullspace"]["threshold"], kinds)
    _pass_blocks(opened.blocks, windows, loop_options(read.run), spectra, reporter or Reporter())
    return Found(spectra.records, opened.source.digest(), windows.sha256)


@torch.no_grad()
def _pass_blocks(
    model: BlockwiseModel,
    windows: TokenWindows,
    options: LoopOptions,
    keep: "KeepSpectra",
    reporter: Reporter,
) -> None:
    measure = Measure(RequiredStatistics.GRAM, options, model.device)
    stages: list[BlockStage] = [EachRound([measure, keep], one_site=True), advance]
    last = _last_block(model)
    with TemporaryDirectory() as folder, reporter.bar("spectra: blocks", last + 1) as bar:
        probe = Probe(next(model.record_inputs([windows.tokens[:1, :PROBE_LENGTH]])))
        streams = open_streams(model, windows.tokens, ["full"], options, Path(folder))
        for index in range(last + 1):
            state = enter_block(
                model,
                index,
                streams,
                probe,
                bar.detail,
                options=options,
                required=measure.required,
            )
            run_stages(stages, replace(state, is_last=index == last))
            bar.advance()
        streams[0].close()


def _last_block(model: BlockwiseModel) -> int:
    """The last one of which something is asked."""
    wanted = model.targets()
    return max(
        index
        for index in range(len(model))
        if any(name.startswith(f"{model.block_name(index)}.") for name in wanted)
    )


@dataclass
class KeepSpectra:
    """The stage that decomposes what was measured and lets it go."""

    threshold: float
    kinds: Mapping[str, str]
    """Of every linear that may be recorded, by its name."""
    records: list[SpectrumRecord] = field(default_factory=list)

    def __call__(self, state: BlockState) -> BlockState:
        """Keep the spectra of one round. Raises as `decompose`."""
        for site, statistics in state.statistics.items():
            name = state.full_name(state.sites[site].targets[0])
            state.say(f"{state.name}: spectrum of {name}")
            self.records.append(self._record(name, state.index, statistics))
        return replace(state, statistics={})

    def _record(self, name: str, block: int, statistics: InputStatistics) -> SpectrumRecord:
        values = rules.of_site(statistics, name=name).values
        places = thinned(len(values))
        return SpectrumRecord(
            layer=name,
            kind=self.kinds[name],
            block=block,
            width=len(values),
            places=places,
            values=_rounded(values[places] / statistics.tokens),
            cuts={
                "ratio": rules.ratio(values, self.threshold),
                "matrix_rank": rules.matrix_rank(values),
                "adam_nscl": rules.adam_nscl(values),
            },
        )


def _rounded(values: Float[Tensor, " places"]) -> list[float]:
    """Six digits: they were float32, and are for figures."""
    return [float(f"{value:.6g}") for value in values.tolist()]


def thinned(width: int) -> list[int]:
    """Places to keep of so many values, from 0, ascending; the last one is among them."""
    ratio = width / _ALL
    ranks = {round(_ALL * ratio ** (step / _LATER)) for step in range(_LATER + 1)}
    return [*range(min(_ALL, width)), *sorted(x - 1 for x in ranks if x > _ALL)]
