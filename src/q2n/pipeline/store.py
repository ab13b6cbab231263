"""What a run has finished, on disk: enough to go on from after a crash.

A run that writes DIR works in DIR.partial until its checkpoint is complete:

    q2n-works-here.txt       the marker of a folder that is ours
    run.json                 the fingerprint: everything the result depends on; labels
    block-00000.safetensors  the quantized layers of one block, and norm weights that changed
    block-00000.json         their metadata and records, facts, checksums
    refit-00000.*            the same after the model as a whole was refitted, if it was
    turn-00000.*             the learned rotation, if there is one
    costs-00000.*            what each width of each layer costs, if widths are to be found
    gradients-00000.*        moments of the gradients at the outputs of one block, the last block
                             first, if the method reads them

Nothing else is needed: the inputs of the next block are computed again from the finished ones.
How the files are kept whole: block_files.py.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxtyping import Float
from safetensors.torch import load, save
from torch import Tensor

from q2n.disk.folders import (
    is_working_folder,
    leave_working_folder,
    make_working_folder,
    require_ours,
)
from q2n.errors import InputError, ResumeError
from q2n.layers.by_name import StoredByName
from q2n.layers.quantized import QuantizedLinear
from q2n.pipeline.block_files import BLOCK, COSTS, GRADIENTS, REFIT, TURN, BlockFiles, is_run_file
from q2n.pipeline.facts import BlockFacts, RunStart
from q2n.pipeline.layer_bytes import described, rebuilt, stored_tensors
from q2n.pipeline.write_behind import When, now

_NORM = "norm_weight"


class RunStore:
    """The finished blocks of one run; `stem` names their files."""

    def __init__(self, folder: Path, stem: str = BLOCK):
        self.folder, self.stem = folder, stem
        self._files = BlockFiles(folder, stem)
        self.turn = BlockFiles(folder, TURN)
        """Of a learned rotation."""
        self.costs = BlockFiles(folder, COSTS)
        """Of the widths of layers."""
        self.gradients = BlockFiles(folder, GRADIENTS)
        """Of the moments of gradients, in the order in which they are found."""

    def another(self, stem: str) -> "RunStore":
        """A second set of blocks in the same folder."""
        return RunStore(self.folder, stem)

    @property
    def is_begun(self) -> bool:
        """Whether the folder is there, and ours."""
        return is_working_folder(self.folder)

    @property
    def holds_work(self) -> bool:
        """Whether there is something to go on with: finished blocks, a learned rotation, what
        widths cost, or gradients.

        Raises:
            ResumeError: something in it is damaged.
        """
        others = (self.turn, self.costs, self.gradients)
        return bool(self.finished() or any(files.count() for files in others))

    def require(self, *, resume: bool) -> None:
        """Refuse a folder that a run cannot begin or go on in, before anything is read.

        Raises:
            InputError: it is somebody else's, or it holds work and `resume` was not asked for.
            ResumeError: something in it is damaged.
        """
        require_ours(self.folder)
        if self.holds_work and not resume:
            raise InputError(
                f"{self.folder} holds an interrupted run: go on with --resume, or delete it"
            )

    def start(
        self, fingerprint: Mapping[str, Any], labels: Mapping[str, Any], *, resume: bool
    ) -> int:
        """Begin or go on; returns the number of finished blocks.

        `fingerprint` is flat: a difference is named by its key. `labels` are names of things
        whose content is in the fingerprint; they are written down, not compared. A run that holds
        no work is begun anew. Tensors of finished blocks are read once, for their checksums.

        Raises:
            InputError: as `require`, or the folder cannot be written.
            ResumeError: the partial run's fingerprint differs, which is named; or something in it
                is damaged.
        """
        self.require(resume=resume)
        make_working_folder(self.folder)
        if not self.holds_work:
            start = RunStart(fingerprint=fingerprint, labels=labels)
            self._files.begin(start.to_json())
            return 0
        if differences := self.started_with().differences(fingerprint):
            raise ResumeError(
                f"{self.folder} belongs to another run: {'; '.join(differences)}. "
                "Use the same settings, or delete the folder to start again"
            )
        for stored in (self, self.another(REFIT)):
            stored.verify()
        return len(self.finished())

    def started_with(self) -> RunStart:
        """What the run was begun with.

        Raises:
            ResumeError: that cannot be read.
        """
        return RunStart.from_json(self._files.start())

    def finished(self) -> list[dict[str, Any]]:
        """The .json of each finished block, in order: what
        `BlockFacts.to_json` gives, and "layers" (by full name: kind, metadata, bits_per_weight,
        shape, record), "norm_weights" (their full names) and the identity that `BlockFiles` adds.

        Raises:
            ResumeError: one is damaged, missing before others, or belongs to another run.
        """
        return [self._files.read(index) for index in range(self._files.count())]

    def seconds_before(self) -> dict[str, float]:
        """How long what comes before the first block took, by what it is; without what was begun
        again after an interruption.

        Raises:
            ResumeError: a file is not the one that was written.
        """
        stages = {"rotation": self.turn, "allocate": self.costs, "gradients": self.gradients}
        return {
            stage: sum(files.read(index).get("seconds", 0.0) for index in range(count))
            for stage, files in stages.items()
            if (count := files.count())
        }

    def verify(self) -> None:
        """Read the tensors of all finished blocks and compare their checksums.

        Raises:
            ResumeError: one differs.
        """
        for index, values in enumerate(self.finished()):
            self._files.tensors(index, values)

    def write_block(
        self,
        index: int,
        layers: Mapping[str, QuantizedLinear],
        facts: BlockFacts,
        norm_weights: Mapping[str, Float[Tensor, "..."]] | None = None,
        when: When = now,
    ) -> None:
        """Store one block atomically.

        Args:
            layers: its quantized layers by full name.
            norm_weights: those that are no longer the original ones, by full name.
            when: calls what writes the files, now or behind other work; by then everything is on
                the CPU.

        Raises:
            InputError: the folder cannot be written.
        """
        norm_weights = norm_weights or {}
        tensors = stored_tensors(layers)
        tensors |= {
            f"{name}:{_NORM}": weight.contiguous().cpu() for name, weight in norm_weights.items()
        }
        values = {
            **facts.to_json(),
            "layers": described(layers),
            "norm_weights": list(norm_weights),
        }
        when(lambda: self._files.write(index, values, save(tensors)))

    def read_block(self, index: int) -> dict[str, QuantizedLinear]:
        """The quantized layers of a finished block, by full name.

        Raises:
            ResumeError: a file is not the one that was written.
        """
        values = self._files.read(index)
        return rebuilt(values["layers"], load(self._files.tensors(index, values)))

    def read_norm_weights(self, index: int) -> dict[str, Float[Tensor, "..."]]:
        """The norm weights of a finished block that are no longer the original ones, by full
        name. Raises as `read_block`."""
        values = self._files.read(index)
        names = values["norm_weights"]
        if not names:
            return {}
        tensors = load(self._files.tensors(index, values))
        return {name: tensors[f"{name}:{_NORM}"] for name in names}

    def norm_weights(self) -> dict[str, Float[Tensor, "..."]]:
        """Those of all finished blocks."""
        blocks = map(self.read_norm_weights, range(len(self.finished())))
        return {name: weight for block in blocks for name, weight in block.items()}

    def layers(self) -> "StoredLayers":
        """All quantized layers by full name, one block in memory at a time."""
        return StoredLayers(self)

    def remove(self) -> list[str]:
        """Delete what a run writes here: the checkpoint is complete. Returns what remains of
        the folder, by path: files of somebody else."""
        return leave_working_folder(self.folder, is_run_file)


class StoredLayers(StoredByName):
    """A lazy mapping over the finished blocks; keeps the latest block it read."""

    def __init__(self, store: RunStore):
        self.store = store
        self._block_of: dict[str, int] = {}
        self._bits: dict[str, float] = {}
        for index, values in enumerate(store.finished()):
            for name, layer in values["layers"].items():
                self._block_of[name] = index
                self._bits[name] = layer["bits_per_weight"]
        self._latest: tuple[int, dict[str, QuantizedLinear]] = (-1, {})

    def __getitem__(self, name: str) -> QuantizedLinear:
        index = self._block_of[name]
        if self._latest[0] != index:
            self._latest = (index, self.store.read_block(index))
        return self._latest[1][name]

    def bits_per_weight(self, name: str) -> float:
        return self._bits[name]

    def __contains__(self, name: object) -> bool:
        return name in self._block_of

    def __iter__(self) -> Iterator[str]:
        return iter(self._block_of)

    def __len__(self) -> int:
        return len(self._block_of)
