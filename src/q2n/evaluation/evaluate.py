"""Perplexity of a model by name: checkpoint, text, windows, measurement."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from q2n.data.texts import Texts
from q2n.evaluation.perplexity import PerplexityResult, perplexity
from q2n.formats.load import load_model
from q2n.logging import Reporter
from q2n.models.checkpoint_files import resolve_checkpoint
from q2n.models.devices import parse_device, requested_dtype
from q2n.option_types import Count, WindowLength, check_fields, plain


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """How a text is cut and a model loaded, as `evaluate` says.

    Raises:
        InputError: a value that cannot be.
    """

    ppl: str
    length: WindowLength
    windows: Count | None
    stride: Count | None
    batch_size: Count
    device: str
    dtype: str | None
    split: str
    trust_remote_code: bool

    def __post_init__(self) -> None:
        check_fields(self)


def evaluate(
    model: str | Path | PreTrainedModel,
    *,
    ppl: str | Path,
    length: int = 2048,
    windows: int | None = None,
    stride: int | None = None,
    batch_size: int = 1,
    device: str = "auto",
    dtype: str | None = "auto",
    split: str = "test",
    trust_remote_code: bool = False,
    tokenizer: Any = None,
    reporter: Reporter | None = None,
) -> PerplexityResult:
    """Perplexity of a full-precision or quantized model on a corpus.

    Args:
        model: as for `quantize`; checkpoints that q2n wrote are recognised.
        ppl: corpus name or path, as for calibration.
        length: context length in tokens.
        windows: at most so many windows; None takes the whole text.
        stride: tokens by which windows advance; None for disjoint windows.
        device, dtype: for a model that is loaded, dtype "auto" or None in the checkpoint's; an
            object is taken as it is.
        split: which part of a corpus that has parts.
        tokenizer: needed for a model object.

    Raises:
        InputError: no such model or text, or too short a text.
        NumericalError: the model's loss is not finite.
    """
    reporter = reporter or Reporter()
    on = Conditions(
        ppl=plain(ppl),
        length=plain(length),
        windows=plain(windows),
        stride=plain(stride),
        batch_size=plain(batch_size),
        device=str(device),
        dtype=dtype,
        split=split,
        trust_remote_code=trust_remote_code,
    )
    wanted, place = requested_dtype(on.dtype), parse_device(on.device)
    folder = None
    if not isinstance(model, PreTrainedModel):
        folder = resolve_checkpoint(str(model), trust_remote_code=on.trust_remote_code)
    texts = Texts(folder, tokenizer, trust_remote_code=on.trust_remote_code)
    text = texts.evaluation(
        on.ppl, length=on.length, limit=on.windows, stride=on.stride, split=on.split
    )
    for note in text.notes:
        reporter.note(note)
    if not isinstance(model, PreTrainedModel):
        assert folder is not None
        model = load_model(
            folder, dtype=wanted, device=place, trust_remote_code=on.trust_remote_code
        )
    with reporter.bar(f"perplexity on {on.ppl}", len(text)) as bar:
        return perplexity(
            model, text, batch_size=on.batch_size, stride=on.stride, progress=bar.advance
        )
