"""One quantization: from settings to a checkpoint, its record and its card.

Run(...)           everything that can be refused is looked at: options against every shape,
                   the texts, the output, other ranks against the first
quantize_blocks    the rotation is learned, if it is to be; the blocks are quantized and stored one
                   by one
write              the checkpoint is written, measured and described in a folder that gets its
                   name when all of it is there
"""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numba
import torch
import transformers

from q2n.checks import check_layers, check_ranks, notes_of_settings, widths_sha256
from q2n.config.opening import (
    calibration_of,
    evaluated_length,
    loop_options,
    model_of,
    refit_text_of,
    texts_of,
)
from q2n.config.output import named, output_folder
from q2n.config.owners import build_plan
from q2n.config.settings import Settings
from q2n.data.texts import Texts
from q2n.data.windows import TokenWindows
from q2n.description import Description
from q2n.disk.folders import partial_folder
from q2n.distributed.agreement import require_agreement, tell
from q2n.distributed.ranks import ALONE, Ranks
from q2n.errors import InputError, ResumeError
from q2n.evaluation.written import compare_written
from q2n.logging import Reporter
from q2n.pipeline.allocation import Allocation
from q2n.pipeline.facts import RunStart
from q2n.pipeline.finished import check_finished
from q2n.pipeline.learned_rotation import learned
from q2n.pipeline.output_gradients import OutputGradients
from q2n.pipeline.rewrite_block import RewriteBlock
from q2n.pipeline.sequential import SequentialLoop
from q2n.pipeline.store import RunStore
from q2n.pipeline.whole_model import refit_stored, refitted
from q2n.planning.least import require_room
from q2n.planning.least_disk import require_disk
from q2n.report.block_record import BlockRecord
from q2n.report.checkpoint import Quantized, wider_in_file
from q2n.report.notes import notes_of
from q2n.report.reading import read_record
from q2n.report.record import RECORD_FILE
from q2n.version import __version__


class Run:
    """One call of `quantize`."""

    def __init__(
        self,
        settings: Settings,
        model: Any,
        tokenizer: Any,
        reporter: Reporter,
        *,
        given: Any = None,
        resume: bool,
        ranks: Ranks = ALONE,
    ):
        self.config = config = settings.run
        self.reporter, self.resume, self.ranks = reporter, resume, ranks
        self.plan = build_plan(settings)
        check_ranks(ranks.size, self.plan, config)
        self.target = (
            output_folder(config, resume=resume) if ranks.is_first else named(config.output)
        )
        self.is_complete = tell(ranks, self.target.exists())
        """Whether an earlier run has written the checkpoint."""
        self.store = RunStore(partial_folder(self.target))
        if ranks.is_first and not self.is_complete:
            self.store.require(resume=resume)
        self.opened = model_of(config, model, self.plan.changes, ranks, tokenizer)
        check_layers(self.opened.blocks, self.plan, config.runtime)
        if not self.is_complete:
            required = bool(self.plan.method.required_statistics) or self.plan.grid is not None
            require_room(self.opened.blocks, statistics=required, streams=self.plan.streams)
        source, texts = self.opened.source, texts_of(config, self.opened, tokenizer, given)
        self.notes: list[str] = [
            *self.opened.notes,
            *self.plan.format.container.check(source, self.plan.storage),
            *notes_of_settings(settings, self.plan, self.opened),
        ]
        """What a user must know of the result, known before the first block: in sentences
        without a full stop, for the screen, the record and the card."""
        self.windows = calibration_of(config, self.opened, texts) if self.plan.reads_text else None
        refit = self.plan.model_refit
        self.refit_text = refit_text_of(config, self.opened, texts, refit) if refit else None
        self.measured_on = self._evaluation(texts) if config.ppl and ranks.is_first else None
        for text in (self.windows, self.measured_on):
            self.notes += text.notes if text is not None else ()
        text = self.windows
        self.labels = {"model": source.label, "text": text.label if text is not None else None}
        self.fingerprint = {
            "q2n_version": __version__,
            "torch_version": torch.__version__,
            "transformers_version": transformers.__version__,
            "kernels": f"numba {numba.__version__} {os.environ.get('Q2N_KERNELS', '')}".strip(),
            "model_sha256": source.digest(),
            "text_sha256": text.sha256 if text is not None else None,
            "refit_text_sha256": self.refit_text.sha256 if self.refit_text is not None else None,
            "allocation_sha256": widths_sha256(self.plan),
            **settings.fingerprint(),
            "format": self.plan.format.name,
            "device": self.opened.blocks.device.type,
        }
        if ranks.is_first and not self.is_complete:
            self._require_writable()
        require_agreement(ranks, {**self.fingerprint, "expert_memory": config.expert_memory})

    def _require_writable(self) -> None:
        """Refuse now what the end would refuse: a disk that is certainly too small, a card that
        cannot be written."""
        place, options = self.target.absolute().parent, loop_options(self.config)
        require_disk(place, self.opened, self.plan, self.windows, options)
        self._description.require_writable(self.notes)

    @property
    def _description(self) -> Description:
        return Description(self.plan, self.opened, self.target, self.fingerprint, self.labels)

    def complete_before(self) -> Quantized:
        """What the earlier run came to that has written the checkpoint; what it left beside that
        is removed.

        Raises:
            InputError: its record is damaged.
            ResumeError: the checkpoint has other settings, or another file of it is damaged.
        """
        record = read_record(self.target / RECORD_FILE)
        before = {key: x for key, x in record.settings.items() if key not in self.labels}
        start = RunStart(fingerprint=before, labels=self.labels)
        if differences := start.differences(self.fingerprint):
            raise ResumeError(
                f"output {self.target} exists and was quantized otherwise: "
                f"{'; '.join(differences)}. Choose another --output"
            )
        try:
            done = self._description.before()
        except InputError as cause:
            raise ResumeError(
                f"output {self.target} was complete and is damaged now ({cause}): delete it and "
                "quantize again"
            ) from cause
        if self._is_of_this_run():
            self._clear_away()
        self.reporter.note(f"{self.target} is complete already: nothing is left to do")
        self._say_unmeasured(done)
        return done

    def _say_unmeasured(self, done: Quantized) -> None:
        """That a complete checkpoint was not measured on the text that was asked for now."""
        text, before = self.measured_on, done.comparison
        if text is not None and (before is None or before.model.sha256 != text.sha256):
            self.reporter.note(
                f"It was not measured on {text.label}, as --ppl asks now: q2n eval {self.target} "
                f"--ppl {self.config.ppl} --reference {self.config.model}"
            )

    def quantize_blocks(self) -> None:
        """Every block, or those that an interrupted run left; then the refit of the model. Of
        several ranks the first one stores them."""
        config = self.config
        for note in self.notes:
            self.reporter.note(note)
        if not self.ranks.is_first:
            self._loop().run(self.windows, tell(self.ranks, None))
            return
        try:
            finished = self.store.start(self.fingerprint, self.labels, resume=self.resume)
            for stored in (self.store, refitted(self.store)):
                check_finished(stored, self.opened.blocks)
            if self.plan.rotation_learning is not None:
                assert self.windows is not None
                self.opened = learned(
                    self.store,
                    self.plan.rotation_learning,
                    self.opened,
                    self.windows,
                    seed=config.seed,
                    reporter=self.reporter,
                )
            self._allocate()
            if self.plan.method.reads_gradients:
                assert self.windows is not None
                gradients = OutputGradients(loop_options(config), self.reporter)
                gradients(self.store, self.opened.blocks, self.windows)
            self._loop().run(self.windows, tell(self.ranks, finished))
            if self.plan.model_refit is not None:
                assert self.refit_text is not None
                refit_stored(
                    self.store,
                    self.plan.model_refit,
                    lambda: self.opened.in_memory(self.opened.source),
                    self.refit_text,
                    reporter=self.reporter,
                )
        except BaseException:  # Ctrl-C too: without work there is nothing to go on with
            if self.store.is_begun and not self.store.holds_work:
                self.store.remove()
            raise

    def _allocate(self) -> None:
        """Find the width of each layer, if that is asked for."""
        if self.plan.allocate is None:
            return
        assert self.windows is not None and self.plan.allocated is not None
        found = Allocation(
            bits=self.plan.allocate,
            options=loop_options(self.config),
            scale_dtype=self.plan.format.codec.scale_dtype(self.opened.source.dtype),
            reporter=self.reporter,
        )
        method = found(self.store, self.plan.allocated, self.opened.blocks, self.windows)
        self.plan = replace(self.plan, method=method)

    def _loop(self) -> SequentialLoop:
        return SequentialLoop(
            self.opened.blocks,
            self.plan.method,
            self.store,
            loop_options(self.config),
            scale_dtype=self.plan.format.codec.scale_dtype(self.opened.source.dtype),
            refit=self.plan.block_refit,
            rewrite=self._rewrite,
            reporter=self.reporter,
            ranks=self.ranks,
        )

    @property
    def _rewrite(self) -> RewriteBlock | None:
        if self.plan.rewrite is None:
            return None
        return RewriteBlock(self.plan.rewrite, self.plan.grid, loop_options(self.config))

    def _evaluation(self, texts: Texts) -> TokenWindows:
        config = self.config
        return texts.evaluation(
            str(config.ppl),
            length=evaluated_length(config),
            limit=config.ppl_windows,
            longest=self.opened.blocks.longest,
            vocabulary=self.opened.blocks.vocabulary,
        )

    def write(self) -> Quantized:
        """The checkpoint from the stored blocks, what was measured, and the card."""
        result = self.store if self.plan.model_refit is None else refitted(self.store)
        blocks = [BlockRecord.from_facts(facts) for facts in result.finished()]
        described: list[Quantized] = []
        self.plan.format.write(
            self.target,
            self.opened.source,
            result.layers(),
            lambda folder, size: described.append(self._describe(folder, size, blocks)),
            norm_weights=result.norm_weights(),
        )
        self._clear_away()
        for note in notes_of(blocks):
            self.reporter.note(note)
        return described[0]

    def _is_of_this_run(self) -> bool:
        """Whether the working folder is, as far as it can be read: it may be half removed."""
        try:
            return not self.store.started_with().differences(self.fingerprint)
        except ResumeError:
            return True

    def _clear_away(self) -> None:
        """Remove the working folder; say what of somebody else's remains in it."""
        if remaining := self.store.remove():
            self.reporter.note(
                f"{self.store.folder} stays, for q2n did not write {', '.join(remaining)}"
            )

    def _describe(self, folder: Path, size: int, blocks: list[BlockRecord]) -> Quantized:
        """Measure the checkpoint in `folder` and describe it there."""
        description = self._description
        kept = description.kept(blocks)
        for note in wider_in_file(blocks, kept, size, self.plan.format.name):
            self.notes.append(note)
            self.reporter.note(note)
        comparison = None
        if self.measured_on is not None:
            comparison = compare_written(
                folder,
                self.opened,
                self.measured_on,
                loop_options(self.config),
                divergence=self.config.kl,
                reporter=self.reporter,
            )
        done, texts = description.files(
            blocks, size, comparison, kept, self.notes, self.store.seconds_before()
        )
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")
        return done
