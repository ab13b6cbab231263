"""One preprocessing: from a model that was quantized once to one for the second round."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from q2n.config.output import new_folder
from q2n.data.protocols import ProtocolName
from q2n.data.texts import Texts
from q2n.data.tokenizer import load_tokenizer
from q2n.disk.folders import (
    leave_working_folder,
    make_working_folder,
    partial_folder,
    require_ours,
)
from q2n.disk.lock import run_lock
from q2n.errors import InputError
from q2n.evaluation.tasks.cache import checkpoint_digest
from q2n.formats import FORMATS
from q2n.formats.load import open_checkpoint
from q2n.logging import Reporter
from q2n.models.blocks import BlockwiseModel
from q2n.models.checkpoint_files import resolve_checkpoint
from q2n.models.devices import parse_device, requested_dtype
from q2n.models.object_source import ObjectSource
from q2n.models.opened import OpenedModel
from q2n.option_types import WindowLength, check_fields
from q2n.patterns import listed
from q2n.preprocess.restorative_lora import RestorativeLora
from q2n.preprocess.resume_file import ResumeFile

RESUME_FILE = "training.safetensors"
_SHARE_SHOWN = 0.1
"""Of the steps, at either end, whose mean loss is said."""


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """The text that is learned from, and how the model is loaded."""

    corpus: str = "wikitext2"
    """Corpus name, file or folder, as for calibration; its training split is read."""
    length: WindowLength = 2048
    """Tokens of a window."""
    protocol: ProtocolName = "q2n"
    """How the text is cut."""
    data_dir: str | None = None
    """Folder from which wikitext2, c4 and ptb are read; None: from the hub."""
    device: str = "auto"
    dtype: str = "auto"
    """To train and write the model in; "auto": the checkpoint's."""
    trust_remote_code: bool = False
    """Let a checkpoint run its own Python code."""

    def __post_init__(self) -> None:
        check_fields(self)
        requested_dtype(self.dtype)
        parse_device(self.device)


@dataclass(frozen=True)
class Preprocessed:
    """What a preprocessing came to."""

    directory: Path
    losses: list[float]
    """Of each step of this call, before its update."""

    @property
    def ends(self) -> tuple[float, float]:
        """Mean loss of the first and of the last tenth of the steps."""
        count = max(1, round(_SHARE_SHOWN * len(self.losses)))
        first, last = self.losses[:count], self.losses[-count:]
        return sum(first) / count, sum(last) / count


def preprocess(
    checkpoint: str | Path,
    output: str | Path,
    how: RestorativeLora,
    on: Conditions,
    *,
    resume: bool,
    reporter: Reporter,
) -> Preprocessed:
    """Train the update of a checkpoint's dense weights, merge it, write the model to `output`.

    Raises:
        InputError: peft is not installed, or the checkpoint, the text or the output cannot be used.
        NumericalError: the loss is not finite.
        ResumeError: what an interrupted call left is damaged, or was told something else.
    """
    _require_peft()
    folder = resolve_checkpoint(str(checkpoint), trust_remote_code=on.trust_remote_code)
    target = new_folder(str(output), str(folder))
    with run_lock(target), _working_folder(target, resume) as place:
        dtype = requested_dtype(on.dtype)
        source = open_checkpoint(folder, dtype, trust_remote_code=on.trust_remote_code)
        if source.runs_parts:
            raise InputError(
                f"{folder} rotates or rounds inputs while it runs, which a model of dense weights "
                "does not: quantize with --rotate-online false, and without --activation-bits and "
                "--kv-bits, before q2n preprocess"
            )
        opened = OpenedModel(source, source, BlockwiseModel(source, parse_device(on.device)))
        tokenizer = load_tokenizer(folder, on.trust_remote_code)
        windows = Texts(folder, tokenizer, protocol=on.protocol, data_dir=on.data_dir).calibration(
            on.corpus,
            count=how.steps,
            length=on.length,
            seed=how.seed,
            longest=opened.blocks.longest,
            vocabulary=opened.blocks.vocabulary,
        )
        told = {name: value for name, value in asdict(how).items() if name != "save_every"}
        told |= {
            "dtype": str(source.dtype),
            "model": checkpoint_digest(folder),
            "text": windows.sha256,
        }
        model = opened.in_memory(source)
        linears = _linears(model, opened.blocks, reporter)
        kept = ResumeFile(place / RESUME_FILE, told)
        losses = []
        with reporter.bar("restorative LoRA", how.steps, done=kept.steps()) as bar:
            for loss in how.train(model, linears, windows.tokens, kept):
                losses.append(loss)
                bar.detail(f"loss {loss:.3f}")
                bar.advance()

        trusted = on.trust_remote_code
        merged = ObjectSource(model, trust_remote_code=trusted, tokenizer=tokenizer)
        FORMATS["dequantized"].write(target, merged, {})
    return Preprocessed(target, losses)


def _linears(model: PreTrainedModel, blocks: BlockwiseModel, reporter: Reporter) -> list[str]:
    """What would be quantized and lies in the model as a linear of its own."""
    modules = dict(model.named_modules())
    targets = blocks.targets()
    found = [name for name in targets if isinstance(modules.get(name), nn.Linear | Conv1D)]
    if left := sorted(set(targets) - set(found)):
        reporter.note(f"Left as they are, for they are no linear layers: {listed(left)}")
    return found


@contextmanager
def _working_folder(target: Path, resume: bool) -> Iterator[Path]:
    """Where the training is kept; it goes when the model is written."""
    place = partial_folder(target)
    require_ours(place)
    kept = place / RESUME_FILE
    if kept.exists() and not resume:
        raise InputError(f"{place} holds an interrupted run: go on with --resume, or delete it")
    make_working_folder(place)
    try:
        yield place
    finally:
        if target.exists() or not kept.exists():
            leave_working_folder(place, lambda path: path.startswith(RESUME_FILE))


def _require_peft() -> None:
    try:
        import peft  # noqa: F401
    except ImportError as cause:
        raise InputError("q2n preprocess needs peft: pip install 'q2n[preprocess]'") from cause
