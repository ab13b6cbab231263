"""Models by name: checkpoint, text, windows, measurement."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from q2n.data.protocols import PROTOCOLS, ProtocolName
from q2n.data.texts import Texts
from q2n.data.tokenizer import shared_tokenizer
from q2n.data.windows import TokenWindows
from q2n.errors import InputError
from q2n.evaluation.compare import Comparer, measure
from q2n.evaluation.noise import noisy_blocks
from q2n.evaluation.opening import Disturb, OpenBody, one_block_at_a_time, whole
from q2n.evaluation.results import Comparison, PerplexityResult
from q2n.formats.load import load_model, open_checkpoint
from q2n.logging import Reporter
from q2n.models.blocks import BlockwiseModel
from q2n.models.checkpoint_files import resolve_checkpoint
from q2n.models.devices import DTYPES, parse_device, requested_dtype
from q2n.option_types import Count, WindowLength, check_fields, plain, shown

Model = str | Path | PreTrainedModel

LENGTH = 2048
"""Tokens of a window unless somebody says otherwise."""


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """How a text is cut and a model loaded.

    Raises:
        InputError: a value that cannot be.
    """

    ppl: str
    """Corpus name or path, as for calibration."""
    length: WindowLength | None = None
    """Context length in tokens; None: the protocol's, or else 2048."""
    windows: Count | None = None
    """At most so many windows; None takes the whole text."""
    stride: Count | None = None
    """Tokens by which windows advance; None for disjoint windows."""
    batch_size: Count = 1
    """Windows per forward pass."""
    device: str = "auto"
    dtype: str | None = "auto"
    """Of a model that is loaded; "auto" or None: the checkpoint's. An object is taken as it is."""
    split: str | None = None
    """Which part of a corpus that has parts; None: the protocol's, or else "test"."""
    protocol: ProtocolName = "q2n"
    """How the text is cut and which predictions count (`data/protocols.py`)."""
    data_dir: str | None = None
    """Folder from which wikitext2, ptb and c4 are read; None: from the hub."""
    block_by_block: bool = False
    """Have one block of a model in memory at a time (a model object is there as a whole)."""
    trust_remote_code: bool = False
    """Let a checkpoint run its own Python code."""

    @classmethod
    def of(cls, **values: Any) -> "Conditions":
        """As Python programs write them: a path for a text, a number of numpy."""
        values["device"] = str(values.get("device", "auto"))
        return cls(**{name: plain(value) for name, value in values.items()})

    def __post_init__(self) -> None:
        check_fields(self)
        requested_dtype(self.dtype)
        parse_device(self.device)


def evaluate(
    model: Model, *, tokenizer: Any = None, reporter: Reporter | None = None, **conditions: Any
) -> PerplexityResult:
    """Perplexity of a full-precision or quantized model on a corpus.

    Args:
        model: as for `quantize`; checkpoints that q2n wrote are recognised.
        tokenizer: needed for a model object.
        **conditions: `ppl`, the text, and any other field of `Conditions`.

    Raises:
        InputError: no such model or text, or too short a text.
        NumericalError: the model's loss is not finite.
    """
    reporter, on = reporter or Reporter(), Conditions.of(**conditions)
    folder = checkpoint_folder(model, on)
    text = open_text(folder, tokenizer, on, reporter)
    body = opening(model, folder, on)
    return measure(model_name(model), body, text, batch_size=on.batch_size, reporter=reporter)


def compare(model: Model, reference: Model, **how: Any) -> Comparison:
    """One model beside its reference: as `compare_all` of one."""
    return compare_all([model], reference, **how)[0]


def compare_all(
    models: Sequence[Model],
    reference: Model,
    *,
    floor: str | float | None = None,
    tokenizer: Any = None,
    reporter: Reporter | None = None,
    **conditions: Any,
) -> list[Comparison]:
    """Models beside the one that they should predict like: perplexities, KL divergence and what
    goes with it, on the same tokens. The reference runs once; one model at a time is in memory.

    Args:
        models, reference: as for `evaluate`.
        floor: measure the reference against itself too: in this dtype ("bfloat16"), or with noise
            of this relative size after every block (0.002).
        tokenizer: in the place of the first model's, and then of no other is asked whether its
            words are the same; needed where a model is an object.
        **conditions: as for `evaluate`.

    Raises:
        InputError: as `evaluate`; the vocabularies differ.
        NumericalError: logits of a model are not finite.
    """
    reporter, on = reporter or Reporter(), Conditions.of(**conditions)
    noise = None if floor is None else _floor(floor)
    original = checkpoint_folder(reference, on)
    if noise is not None and noise[0] is not None and original is None:
        raise InputError(
            f"floor {floor}: a model object has the dtype that it has; give the reference as a "
            "folder, or noise of a relative size (0.002)"
        )
    folders = [checkpoint_folder(model, on) for model in models]
    if tokenizer is None and folders[0] is not None and original is not None:
        known = [folder for folder in folders if folder is not None]
        tokenizer = shared_tokenizer(known, original, on.trust_remote_code)
    comparer = Comparer(
        model_name(reference),
        opening(reference, original, on),
        open_text(folders[0], tokenizer, on, reporter),
        batch_size=on.batch_size,
        reporter=reporter,
    )
    at_floor = None
    if noise is not None:
        dtype, disturb = noise
        again = replace(on, dtype=dtype or on.dtype)
        body = opening(reference, original, again, disturb)
        at_floor = comparer.compare("the reference with noise", body).fidelity
    return [
        replace(comparer.compare(model_name(model), opening(model, folder, on)), floor=at_floor)
        for model, folder in zip(models, folders, strict=True)
    ]


def checkpoint_folder(model: Model, on: Conditions) -> Path | None:
    """Where a model lies; None for an object.

    Raises:
        InputError: there is no such model.
    """
    if isinstance(model, PreTrainedModel):
        return None
    return resolve_checkpoint(str(model), trust_remote_code=on.trust_remote_code)


def model_name(model: Model) -> str:
    """What a model is called on the screen."""
    return str(model) if isinstance(model, str | Path) else type(model).__name__


def open_text(
    folder: Path | None, tokenizer: Any, on: Conditions, reporter: Reporter
) -> TokenWindows:
    """The text in the tokens of the tokenizer, or of that in the folder; notes are reported.

    Raises:
        InputError: no such text, or too short a one.
    """
    texts = Texts(
        folder,
        tokenizer,
        protocol=on.protocol,
        data_dir=on.data_dir,
        trust_remote_code=on.trust_remote_code,
    )
    text = texts.evaluation(
        on.ppl,
        length=on.length or PROTOCOLS[on.protocol].length or LENGTH,
        limit=on.windows,
        stride=on.stride,
        split=on.split,
    )
    for note in text.notes:
        reporter.note(note)
    return text


def opening(
    model: Model, folder: Path | None, on: Conditions, disturb: Disturb | None = None
) -> OpenBody:
    """How a model is opened when its turn comes. A disturbed one is all in memory."""
    device, dtype = parse_device(on.device), requested_dtype(on.dtype)
    if folder is None:
        assert isinstance(model, PreTrainedModel)
        return whole(lambda: model, disturb)
    how: dict[str, Any] = {"dtype": dtype, "trust_remote_code": on.trust_remote_code}
    if on.block_by_block and disturb is None:
        return one_block_at_a_time(lambda: BlockwiseModel(open_checkpoint(folder, **how), device))
    return whole(lambda: load_model(folder, device=device, **how), disturb)


def _floor(floor: str | float) -> tuple[str | None, Disturb | None]:
    """What the reference is measured in against itself: a dtype, or its own and noise.

    Raises:
        InputError: it is neither.
    """
    if floor in DTYPES:
        return str(floor), None
    try:
        relative = float(floor)
    except ValueError:
        relative = math.nan
    if not 0 < relative < 1:
        raise InputError(
            f"floor is {shown(floor)}; it takes {', '.join(DTYPES)}, or the relative size of the "
            "noise, between 0 and 1"
        )
    return None, partial(noisy_blocks, relative=relative, seed=0)
