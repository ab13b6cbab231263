"""One quantization: from settings to a checkpoint, its record and its card.

Run(...)           everything that can be refused is looked at: options against every shape,
                   the texts, the output
quantize_blocks    the blocks are quantized and stored one by one
write              the checkpoint is written, measured and described in a folder that gets its
                   name when all of it is there
"""

import os
from pathlib import Path
from typing import Any

import numba
import torch
import transformers

from q2n.config.owners import Plan, build_plan
from q2n.config.reading import new_folder
from q2n.config.settings import Settings
from q2n.data.texts import Texts
from q2n.data.windows import TokenWindows
from q2n.errors import Q2NError
from q2n.evaluation.compare import compare_perplexity
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
from q2n.report.card import About
from q2n.report.checkpoint import Quantized, describe
from q2n.report.record import BlockRecord, notes_of
from q2n.version import __version__


class Run:
    """One call of `quantize`."""

    def __init__(self, settings: Settings, model: Any, tokenizer: Any, reporter: Reporter):
        self.config = config = settings.run
        self.reporter = reporter
        self.target = new_folder(config)
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
        source = self.opened.source
        texts = Texts(source.folder, tokenizer, trust_remote_code=config.trust_remote_code)
        self.notes: list[str] = self.opened.blocks.notes()
        """What a user must know of the result, known before the first block: in sentences
        without a full stop, for the screen, the record and the card."""
        self.windows = self._calibration(texts) if self.plan.reads_text else None
        self.measured_on = self._evaluation(texts) if config.ppl else None
        self.store = RunStore(partial_folder(self.target))
        text = self.windows
        self.labels = {"model": source.label, "text": text.label if text is not None else None}
        self.fingerprint = {
            "q2n_version": __version__,
            "torch_version": torch.__version__,
            "transformers_version": transformers.__version__,
            "kernels": f"numba {numba.__version__} {os.environ.get('Q2N_KERNELS', '')}".strip(),
            "model_sha256": source.digest(),
            "text_sha256": text.sha256 if text is not None else None,
            **settings.fingerprint(),
            "device": self.opened.blocks.device.type,
        }

    def quantize_blocks(self, resume: bool) -> None:
        """Every block, or those that an interrupted run left; then the refit of the model."""
        config = self.config
        for note in self.notes:
            self.reporter.note(note)
        loop = SequentialLoop(
            self.opened.blocks,
            self.plan.method,
            self.store,
            LoopOptions(
                true_sequential=config.true_sequential,
                batch_size=config.batch_size,
                cross_tokens=config.cross_tokens,
                activations=config.activations,
                seed=config.seed,
            ),
            scale_dtype=self.format.codec.scale_dtype(self.opened.source.dtype),
            refit=self.plan.block_refit,
            reporter=self.reporter,
        )
        finished = self.store.start(self.fingerprint, self.labels, resume=resume)
        try:
            loop.run(self.windows, finished)
            if self.plan.model_refit is not None:
                assert self.windows is not None
                refit_stored(
                    self.store,
                    self.plan.model_refit,
                    lambda: self.opened.in_memory(self.opened.source),
                    self.windows,
                    seed=config.seed,
                    reporter=self.reporter,
                )
        except Q2NError:
            if not self.store.finished():
                self.store.remove()
            raise

    def _calibration(self, texts: Texts) -> TokenWindows:
        config = self.config
        return texts.calibration(
            config.corpus,
            count=config.windows,
            length=config.length,
            seed=config.seed,
            longest=self.opened.longest,
        )

    def _evaluation(self, texts: Texts) -> TokenWindows:
        config = self.config
        return texts.evaluation(
            str(config.ppl),
            length=config.length,
            limit=config.ppl_windows,
            longest=self.opened.longest,
        )

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
        for note in notes_of(blocks):
            self.reporter.note(note)
        return described[0]

    def _describe(self, folder: Path, size: int, blocks: list[BlockRecord]) -> Quantized:
        """Measure the checkpoint in `folder` and describe it there."""
        opened, format = self.opened, self.format
        models = {
            "original": lambda: opened.in_memory(opened.original),
            "quantized": lambda: load_model(
                folder,
                dtype=opened.source.dtype,
                device=opened.blocks.device,
                trust_remote_code=self.config.trust_remote_code,
            ),
        }
        perplexities = {}
        if self.measured_on is not None:
            perplexities = compare_perplexity(
                models, self.measured_on, batch_size=self.config.batch_size, reporter=self.reporter
            )
        return describe(
            folder,
            About(
                method=self.plan.title,
                format=format.name,
                tags=format.container.tags,
                runtime=self.plan.storage.runtime,
            ),
            self.fingerprint,
            self.labels,
            blocks,
            directory=self.target,
            bytes_before=opened.original.size_bytes(),
            bytes_after=size,
            loading_example=format.container.loading_example,
            perplexities=perplexities,
            notes=self.notes,
        )


def _check_layers(opened: OpenedModel, plan: Plan, format: Format) -> None:
    """Refuse a layer that the options or the format do not fit, before any work."""
    for name, target in opened.blocks.targets().items():
        plan.method.check(name, target.shape)
        format.codec.check(name, target.shape, plan.storage)
        format.codec.check_layout(name, transposed=target.transposed)
