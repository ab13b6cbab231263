"""What a run has finished, on disk: enough to go on from after a crash.

A run that writes DIR works in DIR.partial until its checkpoint is complete:

    run.json                 the fingerprint: everything the result depends on; labels
    block-00000.safetensors  the quantized layers of one block, and norm weights that changed
    block-00000.json         their metadata and records, facts, the checksum of the tensors
    refit-00000.*            the same after the model as a whole was refitted, if it was

Every file is written under another name, flushed and renamed; the .json comes last, so a
block either is finished or does not exist. Nothing else is needed: the inputs of the
next block are computed again from the finished ones.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from shutil import rmtree
from typing import Any

from jaxtyping import Float
from safetensors.torch import load, save
from torch import Tensor

from q2n.errors import InputError, ResumeError
from q2n.layers import REPRESENTATIONS
from q2n.layers.quantized import QuantizedLinear
from q2n.pipeline.facts import BlockFacts, RunStart

RUN_FILE = "run.json"
_NORM = "norm_weight"


def partial_folder(output: Path) -> Path:
    """Where a run that is to write `output` works."""
    return output.with_name(output.name + ".partial")


class RunStore:
    """The finished blocks of one run; `stem` names their files."""

    def __init__(
        self,
        folder: Path,
        stem: str = "block",
    ):
        self.folder, self.stem = folder, stem

    def another(self, stem: str) -> "RunStore":
        """A second set of blocks in the same folder."""
        return RunStore(self.folder, stem)

    def start(
        self, fingerprint: Mapping[str, Any], labels: Mapping[str, Any], *, resume: bool
    ) -> int:
        """Begin or go on; returns the number of finished blocks.

        `fingerprint` is flat: a difference is named by its key. `labels` are names of things
        whose content is in the fingerprint; they are written down, not compared. A run that has no
        finished block is begun anew.

        Raises:
            InputError: there are finished blocks and `resume` was not asked for, or the
                folder cannot be written.
            ResumeError: the partial run's fingerprint differs; the difference is named.
        """
        finished = len(self.finished())
        if finished == 0:
            self._begin(fingerprint, labels)
            return 0
        if not resume:
            raise InputError(
                f"{self.folder} holds an interrupted run: go on with --resume, or delete it"
            )
        if differences := self.started_with().differences(json.loads(json.dumps(fingerprint))):
            raise ResumeError(
                f"{self.folder} belongs to another run: {'; '.join(differences)}. "
                "Use the same settings, or delete the folder to start again"
            )
        return finished

    def started_with(self) -> RunStart:
        """What the run was begun with."""
        return RunStart.from_json(json.loads((self.folder / RUN_FILE).read_text()))

    def _begin(self, fingerprint: Mapping[str, Any], labels: Mapping[str, Any]) -> None:
        for old in self.folder.glob("*-*.json"):  # of a later stage, made from other blocks
            old.unlink()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as cause:
            raise InputError(
                f"{self.folder} cannot be made ({cause.strerror}); choose another --output"
            ) from cause
        start = RunStart(fingerprint=fingerprint, labels=labels)
        _write(self.folder / RUN_FILE, json.dumps(start.to_json(), indent=1).encode())

    def finished(self) -> list[dict[str, Any]]:
        """The .json of each finished block, in order, up to the first gap: what
        `BlockFacts.to_json` gives, and "layers" (by full name: kind, metadata, bits_per_weight,
        shape, record), "norm_weights" (their full names) and "sha256" (of the tensors)."""
        blocks: list[dict[str, Any]] = []
        while (file := self._file(len(blocks), ".json")).exists():
            blocks.append(json.loads(file.read_text()))
        return blocks

    def write_block(
        self,
        index: int,
        layers: Mapping[str, QuantizedLinear],
        facts: BlockFacts,
        norm_weights: Mapping[str, Float[Tensor, " _"]] | None = None,
    ) -> None:
        """Store one block atomically.

        Args:
            layers: its quantized layers by full name.
            norm_weights: those that are no longer the original ones, by full name.

        Raises:
            InputError: the folder cannot be written.
        """
        norm_weights = norm_weights or {}
        tensors = {
            f"{name}:{part}": tensor.contiguous().cpu()
            for name, layer in layers.items()
            for part, tensor in layer.tensors().items()
        }
        tensors |= {f"{name}:{_NORM}": weight.cpu() for name, weight in norm_weights.items()}
        data = save(tensors)
        described = {
            name: {
                "kind": layer.kind,
                "metadata": layer.metadata(),
                "bits_per_weight": layer.bits_per_weight,
                "shape": list(layer.shape),
                "record": dict(layer.record),
            }
            for name, layer in layers.items()
        }
        values = {
            **facts.to_json(),
            "layers": described,
            "norm_weights": list(norm_weights),
            "sha256": hashlib.sha256(data).hexdigest(),
        }
        _write(self._file(index, ".safetensors"), data)
        _write(self._file(index, ".json"), json.dumps(values, indent=1).encode())

    def read_block(self, index: int) -> dict[str, QuantizedLinear]:
        """The quantized layers of a finished block, by full name.

        Raises:
            ResumeError: the file is not the one that was written.
        """
        values, tensors = self._read(index)
        return {
            name: self._rebuild(name, described, tensors)
            for name, described in values["layers"].items()
        }

    def read_norm_weights(self, index: int) -> dict[str, Float[Tensor, " _"]]:
        """The norm weights of a finished block that are no longer the original ones, by full
        name. Raises as `read_block`."""
        names = self._description(index)["norm_weights"]
        if not names:
            return {}
        tensors = self._read(index)[1]
        return {name: tensors[f"{name}:{_NORM}"] for name in names}

    def norm_weights(self) -> dict[str, Float[Tensor, " _"]]:
        """Those of all finished blocks."""
        blocks = map(self.read_norm_weights, range(len(self.finished())))
        return {name: weight for block in blocks for name, weight in block.items()}

    def _description(self, index: int) -> dict[str, Any]:
        return json.loads(self._file(index, ".json").read_text())

    def _read(self, index: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
        values = self._description(index)
        file = self._file(index, ".safetensors")
        data = file.read_bytes() if file.exists() else b""
        if hashlib.sha256(data).hexdigest() != values["sha256"]:
            refits = " and all refit-*" if self.stem == "block" else ""
            raise ResumeError(
                f"{file} is damaged (its checksum differs); delete "
                f"{self.stem}-{index:05d}.* and all later files of that name{refits}, then --resume"
            )
        return values, load(data)

    def layers(self) -> "StoredLayers":
        """All quantized layers by full name, one block in memory at a time."""
        return StoredLayers(self)

    def remove(self) -> None:
        """Delete the folder: the checkpoint is complete."""
        rmtree(self.folder)

    def _rebuild(self, name, described, tensors) -> QuantizedLinear:
        parts = {
            key.removeprefix(f"{name}:"): tensor
            for key, tensor in tensors.items()
            if key.startswith(f"{name}:")
        }
        kind = REPRESENTATIONS[described["kind"]]
        layer = kind.from_tensors(parts, described["metadata"])
        return layer.with_record(**described["record"])

    def _file(self, index: int, suffix: str) -> Path:
        return self.folder / f"{self.stem}-{index:05d}{suffix}"


class StoredLayers(Mapping[str, QuantizedLinear]):
    """A lazy mapping over the finished blocks; keeps the latest block it read."""

    def __init__(self, store: RunStore):
        self.store = store
        self._block_of = {
            name: index
            for index, values in enumerate(store.finished())
            for name in values["layers"]
        }
        self._latest: tuple[int, dict[str, QuantizedLinear]] = (-1, {})

    def __getitem__(self, name: str) -> QuantizedLinear:
        index = self._block_of[name]
        if self._latest[0] != index:
            self._latest = (index, self.store.read_block(index))
        return self._latest[1][name]

    def __contains__(self, name: object) -> bool:
        return name in self._block_of

    def __iter__(self) -> Iterator[str]:
        return iter(self._block_of)

    def __len__(self) -> int:
        return len(self._block_of)


def _write(file: Path, data: bytes) -> None:
    """Write, flush to the disk, rename: the file is whole or it is not there."""
    fresh = file.with_suffix(f"{file.suffix}.{os.getpid()}.tmp")
    try:
        with fresh.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        fresh.replace(file)
    except OSError as cause:
        fresh.unlink(missing_ok=True)
        raise InputError(
            f"{file} cannot be written ({cause.strerror}); free space or choose another "
            "--output, then go on with --resume"
        ) from cause
