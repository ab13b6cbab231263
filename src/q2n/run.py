"""One quantization: from settings to a checkpoint, its record and its card.

Run(...)           everything that can be refused is looked at: options against every shape,
                   the texts, the output
quantize_blocks    the blocks are quantized and stored one by one
write              the checkpoint is written, measured and described in a folder that gets its
                   name when all of it is there
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from q2n.config.owners import Plan, build_plan
from q2n.config.settings import RunSettings, Settings
from q2n.data.texts import Texts
from q2n.data.windows import TokenWindows
from q2n.errors import InputError, Q2NError
from q2n.evaluation.perplexity import PerplexityResult, perplexity
from q2n.formats.choice import choose_format
from q2n.formats.format import Format
from q2n.formats.load import load_model
from q2n.logging import Reporter
from q2n.models.opened import OpenedModel, open_model
from q2n.models.targets import LayerFilter
from q2n.pipeline.options import LoopOptions
from q2n.pipeline.sequential import SequentialLoop
from q2n.pipeline.store import RunStore, partial_folder
from q2n.pipeline.whole_model import refit_stored, refitted
from q2n.report.card import CardFacts, Perplexity, render_card
from q2n.report.record import RECORD_FILE, TIMINGS_FILE, BlockRecord, RunRecord, timings
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
        self.reporter = reporter
        self.config = config = settings.run
        self.target = _fresh(config)
        self.plan = build_plan(settings)
        self.format = choose_format(config.format, config.method, self.plan.storage)
        self.opened = open_model(
            model,
            self.plan.changes,
            LayerFilter(config.ignore, config.only),
            device=config.device,
            dtype=config.dtype,
            revision=config.revision,
            trust_remote_code=config.trust_remote_code,
            seed=config.seed,
        )
        _check_layers(self.opened, self.plan, self.format)
        texts = Texts(
            self.opened.source.folder, tokenizer, trust_remote_code=config.trust_remote_code
        )
        self.windows = self._calibration(texts) if self.plan.reads_text else None
        self.measured_on = (
            texts.evaluation(config.ppl, length=config.length, limit=config.ppl_windows)
            if config.ppl
            else None
        )
        self.store = RunStore(partial_folder(self.target))
        self.labels = {
            "model": self.opened.source.label,
            "text": self.windows.label if self.windows is not None else None,
        }
        self.fingerprint = self._fingerprint(settings)

    def quantize_blocks(self, resume: bool) -> None:
        """Every block, or those that an interrupted run left; then the refit of the model."""
        finished = self.store.start(self.fingerprint, self.labels, resume=resume)
        try:
            self._loop().run(self.windows, finished)
            if self.plan.model_refit is not None:
                assert self.windows is not None
                refit_stored(
                    self.store,
                    self.plan.model_refit,
                    lambda: self.opened.in_memory(self.opened.source),
                    self.windows,
                    seed=self.config.seed,
                    reporter=self.reporter,
                )
        except Q2NError:
            if not self.store.finished():
                self.store.remove()
            raise

    def write(self) -> Quantized:
        """The checkpoint from the stored blocks, what was measured, and the card."""
        result = self.store if self.plan.model_refit is None else refitted(self.store)
        blocks = [BlockRecord.from_facts(facts) for facts in result.finished()]
        described: list[Quantized] = []
        self.format.write(
            self.target,
            self.opened.source,
            result.layers(),
            lambda folder, size: described.append(self._describe(folder, size, blocks)),
            norm_weights=result.norm_weights(),
        )
        self.store.remove()
        return described[0]

    def _describe(self, folder: Path, size: int, blocks: list[BlockRecord]) -> Quantized:
        """Measure the checkpoint in `folder` and write its record, timings and card there."""
        perplexities = self._perplexities(folder)
        measured = {which: _without_time(result) for which, result in perplexities.items()}
        record = RunRecord.of(self.fingerprint, self.labels, blocks, perplexity=measured)
        done = Quantized(
            directory=self.target,
            record=record.to_json(),
            timings=timings(blocks),
            bytes_before=self.opened.original.size_bytes(),
            bytes_after=size,
            loading_example=self.format.container.loading_example(self.target),
            perplexities=perplexities,
        )
        (folder / RECORD_FILE).write_text(json.dumps(done.record, indent=1) + "\n")
        (folder / TIMINGS_FILE).write_text(json.dumps(done.timings, indent=1) + "\n")
        (folder / "README.md").write_text(render_card(self._card(done)))
        return done

    def _loop(self) -> SequentialLoop:
        config = self.config
        options = LoopOptions(
            true_sequential=config.true_sequential,
            batch_size=config.batch_size,
            cross_tokens=config.cross_tokens,
            activations=config.activations,
            seed=config.seed,
        )
        return SequentialLoop(
            self.opened.blocks,
            self.plan.method,
            self.store,
            options,
            scale_dtype=self.format.codec.scale_dtype(self.opened.source.dtype),
            refit=self.plan.block_refit,
            reporter=self.reporter,
        )

    def _calibration(self, texts: Texts) -> TokenWindows:
        return texts.calibration(
            self.config.corpus,
            count=self.config.windows,
            length=self.config.length,
            seed=self.config.seed,
            longest=self.opened.longest,
        )

    def _fingerprint(self, settings: Settings) -> dict[str, Any]:
        """Everything that the bytes of the result depend on."""
        flat = settings.flat()
        own = {key: value for key, value in flat.items() if key not in NOT_IN_FINGERPRINT}
        return {
            "q2n_version": __version__,
            "torch_version": torch.__version__,
            "model_sha256": self.opened.source.digest(),
            "text_sha256": self.windows.sha256 if self.windows is not None else None,
            **json.loads(json.dumps(own)),
            "device": self.opened.blocks.device.type,
        }

    def _perplexities(self, folder: Path) -> dict[str, PerplexityResult]:
        """Of the original and of the checkpoint in `folder`, one model in memory at a time."""
        if self.measured_on is None:
            return {}
        original = self._perplexity(self.opened.in_memory(self.opened.original), "original")
        checkpoint = load_model(
            folder,
            dtype=self.opened.source.dtype,
            device=self.opened.blocks.device,
            trust_remote_code=self.config.trust_remote_code,
        )
        return {"original": original, "quantized": self._perplexity(checkpoint, "quantized")}

    def _perplexity(self, model: PreTrainedModel, which: str) -> PerplexityResult:
        assert self.measured_on is not None
        title = f"perplexity of the {which} weights"
        with self.reporter.bar(title, len(self.measured_on)) as bar:
            return perplexity(
                model,
                self.measured_on,
                batch_size=self.config.batch_size,
                progress=bar.advance,
            )

    def _card(self, done: Quantized) -> CardFacts:
        measured = [
            Perplexity(
                model=which,
                corpus=result.label,
                value=result.perplexity,
                standard_error=result.standard_error,
                context=result.length,
                windows=result.windows,
            )
            for which, result in done.perplexities.items()
        ]
        return CardFacts(
            base_model=self.opened.source.label,
            title=self.target.name,
            format=self.format.name,
            tags=list(dict.fromkeys(("quantized", "q2n", *self.format.container.tags))),
            loading_example=self.format.container.loading_example(Path(self.target.name)),
            method=self.plan.title,
            runtime=self.plan.storage.runtime,
            settings=done.record["settings"],
            bits_per_weight=done.record["bits_per_weight"],
            bytes_before=done.bytes_before,
            bytes_after=done.bytes_after,
            perplexities=measured,
            version=__version__,
        )


def _fresh(config: RunSettings) -> Path:
    """The folder to write, which must not be there yet."""
    for needed in ("model", "output"):
        if not getattr(config, needed):
            raise InputError(f"no {needed} given")
    target = Path(config.output)
    if target.exists():
        raise InputError(f"output {target} exists; choose another folder or delete it")
    return target


def _check_layers(opened: OpenedModel, plan: Plan, format: Format) -> None:
    """Refuse a layer that the options or the format do not fit, before any work."""
    for name, target in opened.blocks.targets().items():
        plan.method.check(name, target.shape)
        format.codec.check(name, target.shape, plan.storage)
        format.codec.check_layout(name, transposed=target.transposed)


def _without_time(result: PerplexityResult) -> dict[str, Any]:
    return {key: value for key, value in asdict(result).items() if key != "seconds"}
