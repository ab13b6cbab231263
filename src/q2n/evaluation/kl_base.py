"""Models by name beside a base file of llama.cpp, and the base file of a model (`llama_cpp/`)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from q2n.data.texts import Texts
from q2n.evaluation.evaluate import (
    Conditions,
    Model,
    checkpoint_folder,
    model_name,
    open_text,
    opening,
)
from q2n.evaluation.fidelity import fidelity_of
from q2n.evaluation.llama_cpp.base_file import BaseFile, require_new, write_base
from q2n.evaluation.llama_cpp.comparison import compare
from q2n.evaluation.llama_cpp.layout import Layout
from q2n.evaluation.llama_cpp.scored_logits import chunk_logits
from q2n.evaluation.llama_cpp.statistics import Statistics, require_enough
from q2n.evaluation.results import Fidelity
from q2n.logging import Reporter


@dataclass(frozen=True, kw_only=True)
class BesideBase:
    """A model beside the one of a base file."""

    statistics: Statistics
    """What `llama-perplexity --kl-divergence` prints."""
    fidelity: Fidelity
    """The same tokens, with errors from the spread of the windows."""


def save_kl_base(
    model: Model,
    file: str | Path,
    *,
    tokenizer: Any = None,
    reporter: Reporter | None = None,
    **conditions: Any,
) -> None:
    """Write a model's log probabilities on a text, for `llama-perplexity --kl-divergence` or
    `compare_to_kl_base`.

    Args:
        model, tokenizer: as for `evaluate`.
        file: must not exist; 2 bytes for each word and scored token.
        **conditions: as for `evaluate`; the protocol is llama.cpp's.

    Raises:
        InputError: as `evaluate`, or the file cannot be written.
        NumericalError: logits are not finite.
    """
    reporter = reporter or Reporter()
    on = Conditions.of(**conditions, protocol="llama.cpp")
    require_new(Path(file))
    folder = checkpoint_folder(model, on)
    windows = open_text(folder, tokenizer, on, reporter)
    with (
        torch.inference_mode(),
        reporter.bar(f"logits of {model_name(model)}", len(windows)) as bar,
        opening(model, folder, on)(windows, bar) as body,
    ):
        words = body.head.words
        layout = Layout(n_ctx=windows.length, n_vocab=words, n_chunks=len(windows))
        logits = chunk_logits(body, layout, on.batch_size)
        write_base(Path(file), windows.of_text, words, logits, progress=bar.advance)


def compare_to_kl_base(
    model: Model,
    file: str | Path,
    *,
    tokenizer: Any = None,
    reporter: Reporter | None = None,
    **conditions: Any,
) -> BesideBase:
    """A model beside the one whose log probabilities a base file holds, on the tokens in it.

    Args:
        model, tokenizer: as for `evaluate`. The tokenizer says whether windows begin with BOS.
        file: written by q2n or by llama-perplexity.
        **conditions: how the model is loaded and how many windows run together, as for `evaluate`.

    Raises:
        InputError: no such model or file, a damaged file, or another vocabulary.
        NumericalError: logits are not finite.
    """
    reporter = reporter or Reporter()
    base = BaseFile.open(Path(file))
    require_enough(len(base.tokens) * base.layout.scored)
    on = Conditions.of(**conditions, ppl=str(file), protocol="llama.cpp")
    folder = checkpoint_folder(model, on)
    texts = Texts(folder, tokenizer, trust_remote_code=on.trust_remote_code)
    windows = base.windows(texts.bos)
    with (
        torch.inference_mode(),
        reporter.bar(f"KL of {model_name(model)}", len(windows)) as bar,
        opening(model, folder, on)(windows, bar) as body,
    ):
        base.require_vocabulary(body.head.words)
        logits = chunk_logits(body, base.layout, on.batch_size)
        scores = compare(base, logits, progress=bar.advance)
    return BesideBase(
        statistics=Statistics.of(scores),
        fidelity=fidelity_of(scores.per_token(), windows, str(file)),
    )
