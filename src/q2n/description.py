"""What describes a checkpoint beside its tensors: the record, the card, the file of widths."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from q2n.config.owners import Plan
from q2n.config.reading import not_usual
from q2n.config.widths import FILE as WIDTHS_FILE
from q2n.config.widths import widths_text
from q2n.errors import InputError
from q2n.evaluation.results import Comparison
from q2n.models.auto_classes import loaded_as
from q2n.models.full_precision import FullPrecision
from q2n.models.opened import OpenedModel
from q2n.report.block_record import BlockRecord
from q2n.report.card import About
from q2n.report.checkpoint import Quantized, describe, described_before


@dataclass(frozen=True)
class Description:
    """Of the checkpoint of one run, as far as it is known before the first block."""

    plan: Plan
    opened: OpenedModel
    target: Path
    """The folder that will hold the checkpoint."""
    fingerprint: Mapping[str, Any]
    labels: Mapping[str, str | None]

    def require_writable(self, notes: Sequence[str]) -> None:
        """Refuse names that no file can hold.

        Raises:
            InputError: a name is not UTF-8.
        """
        try:
            for text in self.files([], 0, None, self.kept([]), notes, {})[1].values():
                text.encode()
        except UnicodeEncodeError as cause:
            raise InputError(f"a name for the model card is not UTF-8: {cause}") from cause

    def kept(self, blocks: Sequence[BlockRecord]) -> FullPrecision:
        """What is not quantized where these blocks are."""
        quantized = [name for block in blocks for name in block.layers]
        return self.plan.format.container.kept(self.opened.source, quantized)

    def files(
        self,
        blocks: Sequence[BlockRecord],
        size: int,
        comparison: Comparison | None,
        kept: FullPrecision,
        notes: Sequence[str],
        before: Mapping[str, float],
    ) -> tuple[Quantized, dict[str, str]]:
        """What the run came to, and the texts of its files by name.

        Args:
            size: bytes of all tensors.
            notes: what a user must know, in sentences without a full stop.
            before: seconds of what came before the first block.
        """
        opened, format = self.opened, self.plan.format
        done, texts = describe(
            About(
                method=self.plan.title,
                format=format.name,
                tags=format.container.tags,
                language=format.container.language,
                outside=format.container.outside_types(opened.source),
                library=format.container.library,
                runtime=opened.source.runtime is not None,
            ),
            self.fingerprint,
            self.labels,
            blocks,
            directory=self.target,
            bytes_before=opened.original.size_bytes(),
            bytes_after=size,
            loading_example=self._loading_example,
            comparison=comparison,
            kept=kept,
            shown=not_usual({**self.labels, **self.fingerprint}),
            before=before,
            notes=notes,
        )
        if widths := self.plan.widths:
            texts[WIDTHS_FILE] = widths_text(widths, done.record["bits_per_weight"])
        return done, texts

    def before(self) -> Quantized:
        """What an earlier run came to, by the record that it wrote."""
        return described_before(
            self.target,
            bytes_before=self.opened.original.size_bytes(),
            bytes_after=self.plan.format.container.tensor_bytes(self.target),
            loading_example=self._loading_example,
        )

    def _loading_example(self, folder: Path) -> str:
        lines = self.plan.format.container.loading_example(folder)
        return loaded_as(lines, self.opened.source.config)
