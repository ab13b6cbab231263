"""One quantization: from a configuration to a checkpoint, its record and its card.

Everything that can be refused is looked at first: options against every shape, the texts,
the output. Then the blocks are quantized and stored one by one; at the end the checkpoint is
written, measured and described in a folder that gets its name when all of it is there.
"""

import json
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from q2n.config.owners import (
    build_block_refit,
    build_changes,
    build_method,
    build_model_refit,
    storage,
)
from q2n.config.settings import Settings
from q2n.data.corpora import load_corpus
from q2n.data.tokenizer import load_tokenizer
from q2n.data.windows import TokenWindows, calibration_windows, evaluation_windows
from q2n.errors import InputError, Q2NError
from q2n.evaluation.perplexity import PerplexityResult, perplexity
from q2n.formats.choice import choose_format
from q2n.formats.hf_folder import write_checkpoint
from q2n.formats.load import load_model
from q2n.layers import REPRESENTATIONS
from q2n.logging import Reporter
from q2n.method import Method
from q2n.models.blocks import BlockwiseModel
from q2n.models.devices import parse_device
from q2n.models.rotated_source import surrounded
from q2n.models.source import assemble, open_source
from q2n.pipeline.options import LoopOptions
from q2n.pipeline.sequential import SequentialLoop
from q2n.pipeline.store import RunStore, partial_folder
from q2n.pipeline.whole_model import STEM as REFIT_STEM
from q2n.pipeline.whole_model import refit_stored
from q2n.report.card import CardFacts, Perplexity, render_card
from q2n.report.record import RECORD_FILE, TIMINGS_FILE, build_record, build_timings
from q2n.version import __version__

NOT_IN_FINGERPRINT = ("model", "output", "corpus", "activations", "ppl", "ppl_windows")
"""Settings that a hash of the content stands for, or that do not touch the result."""


@dataclass(frozen=True)
class Quantized:
    """A finished checkpoint and what it cost."""

    directory: Path
    record: dict[str, Any]
    """What `q2n.json` in the folder holds."""
    timings: dict[str, Any]
    """What `q2n_timings.json` holds."""
    bytes_before: int
    bytes_after: int
    loading_example: str
    """Python lines that load the checkpoint."""
    perplexities: dict[str, PerplexityResult]
    """Of "original" and "quantized", if `ppl` was asked for."""


class Run:
    """One call of `quantize`."""

    def __init__(self, settings: Settings, model: Any, tokenizer: Any, reporter: Reporter):
        self.settings, self.model, self.reporter = settings, model, reporter
        self.config = config = settings.run
        for needed in ("model", "output"):
            if not getattr(config, needed):
                raise InputError(f"no {needed} given")
        self.target = Path(config.output)
        if self.target.exists():
            raise InputError(f"output {self.target} exists; choose another folder or delete it")
        self.method: Method = build_method(settings)
        self.changes = build_changes(settings)
        self.storage = storage(self.method, self.changes)
        self.format = choose_format(config.format, config.method, self.storage)
        self.device = parse_device(config.device)
        self.store = RunStore(partial_folder(self.target), REPRESENTATIONS)
        self.original = open_source(
            model,
            dtype=config.dtype,
            trust_remote_code=config.trust_remote_code,
            revision=config.revision,
        )
        self.source = surrounded(self.original, self.changes, config.seed)
        self.loop = self._loop()
        self.tokenizer = tokenizer
        self.model_refit = build_model_refit(settings)
        reads_text = self.method.required_statistics or config.refit != "off"
        self.windows = self._calibration() if reads_text else None
        self.measured_on = self._evaluation() if config.ppl else None
        self.labels = {
            "model": self.source.label,
            "text": self.windows.label if self.windows is not None else None,
        }
        self.fingerprint = self._fingerprint()

    def quantize_blocks(self, resume: bool) -> None:
        """Every block, or those that an interrupted run left."""
        finished = self.store.start(self.fingerprint, self.labels, resume=resume)
        try:
            self.loop.run(self.windows, finished)
            if self.model_refit is not None:
                assert self.windows is not None
                refit_stored(
                    self.store,
                    self.model_refit,
                    self._teacher,
                    self.windows,
                    seed=self.config.seed,
                    reporter=self.reporter,
                )
        except Q2NError:
            if not self.store.finished():
                self.store.remove()
            raise

    @property
    def result(self) -> RunStore:
        """The blocks that the checkpoint is made of."""
        return self.store if self.model_refit is None else self.store.another(REFIT_STEM)

    def write(self) -> Quantized:
        """The checkpoint from the stored blocks, what was measured, and the card."""
        finished: list[Quantized] = []
        write_checkpoint(
            self.target,
            self.source,
            self.result.layers(),
            self.format,
            lambda folder, size: finished.append(self._describe(folder, size)),
            gains=self.result.norm_weights(),
        )
        self.store.remove()
        return finished[0]

    def _describe(self, folder: Path, size: int) -> Quantized:
        """Measure the checkpoint in `folder` and write its record, timings and card there."""
        facts = self.result.finished()
        perplexities = self._perplexities(folder)
        measured = {which: _without_time(result) for which, result in perplexities.items()}
        done = Quantized(
            directory=self.target,
            record={
                **build_record(self.fingerprint, self.labels, facts),
                "perplexity": measured,
            },
            timings=build_timings(facts),
            bytes_before=self.original.size_bytes(),
            bytes_after=size,
            loading_example=self.format.loading_example(self.target),
            perplexities=perplexities,
        )
        (folder / RECORD_FILE).write_text(json.dumps(done.record, indent=1) + "\n")
        (folder / TIMINGS_FILE).write_text(json.dumps(done.timings, indent=1) + "\n")
        (folder / "README.md").write_text(render_card(self._card(done)))
        return done

    def _loop(self) -> SequentialLoop:
        """The block loop, after a look at every shape: what does not fit is said before work."""
        config = self.config
        options = LoopOptions(
            true_sequential=config.true_sequential,
            batch_size=config.batch_size,
            cross_tokens=config.cross_tokens,
            activations=config.activations,
            seed=config.seed,
        )
        blocks = BlockwiseModel(self.source, self.device)
        for name, shape in blocks.linears():
            self.method.check(name, shape)
            self.format.check(name, shape, self.storage)
        return SequentialLoop(
            blocks,
            self.method,
            self.store,
            options,
            scale_dtype=self.format.scale_dtype(self.source.dtype),
            refit=build_block_refit(self.settings),
            reporter=self.reporter,
        )

    def _calibration(self) -> TokenWindows:
        limit = getattr(self.source.config.get_text_config(), "max_position_embeddings", None)
        if limit is not None and self.config.length > limit:
            raise InputError(
                f"length {self.config.length} is more than the {limit} positions of "
                f"{self.source.label}; give --length {limit} or less"
            )
        return calibration_windows(
            load_corpus(self.config.corpus, "train"),
            self._tokenizer(),
            count=self.config.windows,
            length=self.config.length,
            seed=self.config.seed,
        )

    def _evaluation(self) -> TokenWindows:
        assert self.config.ppl is not None
        return evaluation_windows(
            load_corpus(self.config.ppl, "test"),
            self._tokenizer(),
            self.config.length,
            limit=self.config.ppl_windows,
        )

    def _tokenizer(self) -> Any:
        if self.tokenizer is None:
            if self.source.folder is None:
                raise InputError("a model object comes without its tokenizer: give tokenizer=...")
            self.tokenizer = load_tokenizer(self.source.folder, self.config.trust_remote_code)
        return self.tokenizer

    def _fingerprint(self) -> dict[str, Any]:
        """Everything that the bytes of the result depend on."""
        settings = self.settings.flat()
        kept = {key: value for key, value in settings.items() if key not in NOT_IN_FINGERPRINT}
        return {
            "q2n_version": __version__,
            "torch_version": torch.__version__,
            "model_sha256": self.source.digest(),
            "text_sha256": self.windows.sha256 if self.windows is not None else None,
            **json.loads(json.dumps(kept)),
            "device": self.device.type,
        }

    def _perplexities(self, folder: Path) -> dict[str, PerplexityResult]:
        """Of the original and of the checkpoint in `folder`, one model in memory at a time."""
        if self.measured_on is None:
            return {}
        return {"original": self._perplexity(None), "quantized": self._perplexity(folder)}

    def _perplexity(self, folder: Path | None) -> PerplexityResult:
        assert self.measured_on is not None
        model = self._original_model() if folder is None else self._load(folder)
        title = f"perplexity of the {'quantized' if folder else 'original'} weights"
        with self.reporter.bar(title, len(self.measured_on)) as bar:
            return perplexity(
                model,
                self.measured_on,
                batch_size=self.config.batch_size,
                progress=bar.advance,
            )

    def _original_model(self) -> PreTrainedModel:
        """The model before quantization, in the dtype of the run; a copy where it was given as
        an object."""
        if self.source.folder is not None:
            return self._load(self.source.folder)
        model = deepcopy(self.model).to(self.device).eval()
        for parameter in model.parameters():  # buffers keep their own dtype
            parameter.data = parameter.data.to(self.source.dtype)
        return model

    def _teacher(self) -> PreTrainedModel:
        """The full-precision model with the weights from which layers were quantized."""
        if self.source is self.original:
            return self._original_model()
        return assemble(self.source, device=self.device)

    def _load(self, folder: Path) -> PreTrainedModel:
        return load_model(
            folder,
            dtype=self.source.dtype,
            device=self.device,
            trust_remote_code=self.config.trust_remote_code,
        )

    def _card(self, done: Quantized) -> CardFacts:
        refit = "" if self.config.refit == "off" else f", then refit ({self.config.refit})"
        changes = f"; {self.changes.title}" if self.changes.title else ""
        return CardFacts(
            base_model=self.source.label,
            title=self.target.name,
            format=self.format,
            directory=Path(self.target.name),
            method=f"{self.method.title}{refit}{changes}",
            online=self.source.online is not None,
            settings=done.record["settings"],
            bits_per_weight=done.record["bits_per_weight"],
            bytes_before=done.bytes_before,
            bytes_after=done.bytes_after,
            perplexities=[
                Perplexity(
                    model=which,
                    corpus=result.label,
                    value=result.perplexity,
                    standard_error=result.standard_error,
                    context=result.length,
                    windows=result.windows,
                )
                for which, result in done.perplexities.items()
            ],
            version=__version__,
        )


def _without_time(result: PerplexityResult) -> dict[str, Any]:
    return {key: value for key, value in asdict(result).items() if key != "seconds"}
