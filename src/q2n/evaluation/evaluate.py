"""Perplexity of a model by name: checkpoint, text, windows, measurement."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from q2n.data.corpora import load_corpus
from q2n.data.tokenizer import load_tokenizer
from q2n.data.windows import evaluation_windows
from q2n.errors import InputError
from q2n.evaluation.perplexity import PerplexityResult, perplexity
from q2n.formats.load import load_model
from q2n.logging import Reporter
from q2n.models.checkpoint_files import resolve_checkpoint
from q2n.models.devices import parse_device, parse_dtype


def evaluate(
    model: str | Path | PreTrainedModel,
    *,
    ppl: str,
    length: int = 2048,
    windows: int | None = None,
    stride: int | None = None,
    batch_size: int = 1,
    device: str = "auto",
    dtype: str | None = None,
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
        device, dtype: for a model that is loaded; an object is taken as it is.
        split: which part of a corpus that has parts.
        tokenizer: needed for a model object.

    Raises:
        InputError: no such model or text, or too short a text.
        NumericalError: the model's loss is not finite.
    """
    reporter = reporter or Reporter()
    if isinstance(model, PreTrainedModel):
        if tokenizer is None:
            raise InputError("a model object comes without its tokenizer: give tokenizer=...")
    else:
        folder = resolve_checkpoint(str(model), trust_remote_code=trust_remote_code)
        tokenizer = tokenizer or load_tokenizer(folder, trust_remote_code)
    text = evaluation_windows(
        load_corpus(ppl, split), tokenizer, length=length, limit=windows, stride=stride
    )
    if not isinstance(model, PreTrainedModel):
        model = load_model(
            folder,
            dtype=parse_dtype(dtype) if dtype else None,
            device=parse_device(device),
            trust_remote_code=trust_remote_code,
        )
    with reporter.bar(f"perplexity on {ppl}", len(text)) as bar:
        return perplexity(model, text, batch_size=batch_size, stride=stride, progress=bar.advance)
