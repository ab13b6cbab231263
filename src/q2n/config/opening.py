"""Opens what the settings of a run name: the model and the text that it is calibrated on."""

from dataclasses import fields
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from q2n.config.settings import RunSettings
from q2n.data.protocols import PROTOCOLS
from q2n.data.texts import Texts
from q2n.data.windows import TokenWindows
from q2n.distributed.ranks import ALONE, Ranks
from q2n.models.opened import OpenedModel, open_model
from q2n.models.targets import LayerFilter
from q2n.pipeline.options import LoopOptions
from q2n.refit.model import ModelRefit
from q2n.transforms.model_changes import ModelChanges


def model_of(
    run: RunSettings,
    model: str | Path | PreTrainedModel,
    changes: ModelChanges,
    ranks: Ranks = ALONE,
    tokenizer: Any = None,
) -> OpenedModel:
    """The model, or the model object that stands for it with its `tokenizer`, on the device of this
    rank; no weight is loaded yet. Raises as `open_model` and `Ranks.device`."""
    return open_model(
        model,
        changes,
        LayerFilter(run.ignore, run.only),
        device=ranks.device(run.device),
        dtype=run.dtype,
        revision=run.revision,
        trust_remote_code=run.trust_remote_code,
        seed=run.seed,
        tokenizer=tokenizer,
    )


def texts_of(
    run: RunSettings, opened: OpenedModel, tokenizer: Any = None, given: Any = None
) -> Texts:
    """Texts in the model's tokens.

    Args:
        tokenizer: in the place of the model's own; a model object comes without one.
        given: documents to calibrate on, in the place of the corpus.
    """
    return Texts(
        opened.source.folder,
        tokenizer,
        protocol=run.protocol,
        data_dir=run.data_dir,
        trust_remote_code=run.trust_remote_code,
        given=given,
    )


def calibration_of(run: RunSettings, opened: OpenedModel, texts: Texts) -> TokenWindows:
    """The calibration windows. Raises as `Texts.calibration`."""
    return _drawn(run, opened, texts, run.windows, run.seed)


def refit_text_of(
    run: RunSettings, opened: OpenedModel, texts: Texts, refit: ModelRefit
) -> TokenWindows:
    """The windows of a refit of the whole model, drawn from the same text, but for themselves.
    Raises as `Texts.calibration`."""
    return _drawn(run, opened, texts, refit.windows, loop_options(run).seed_of("refit"))


def _drawn(
    run: RunSettings, opened: OpenedModel, texts: Texts, count: int, seed: int
) -> TokenWindows:
    return texts.calibration(
        run.corpus,
        count=count,
        length=run.length,
        seed=seed,
        longest=opened.blocks.longest,
        vocabulary=opened.blocks.vocabulary,
    )


def loop_options(run: RunSettings) -> LoopOptions:
    """How the block loop runs."""
    return LoopOptions(**{x.name: getattr(run, x.name) for x in fields(LoopOptions)})


def evaluated_length(run: RunSettings) -> int:
    """Tokens of a window on which the result is measured: the most that the protocol takes."""
    return min(run.length, PROTOCOLS[run.protocol].length or run.length)
