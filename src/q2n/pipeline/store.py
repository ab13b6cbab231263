"""What a run has finished, on disk: enough to go on from after a crash.

A run that writes DIR works in DIR.partial until its checkpoint is complete:

    run.json                 the fingerprint: everything the result depends on; labels
    block-00000.safetensors  the quantized linears of one block, and norm gains that changed
    block-00000.json         their metadata and records, and the checksum of the tensors
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

from safetensors.torch import load, save
from torch import Tensor

from q2n.errors import InputError, ResumeError
from q2n.layers.quantized import QuantizedLinear

RUN_FILE = "run.json"
_GAIN = "gain"


def partial_folder(output: Path) -> Path:
    """Where a run that is to write `output` works."""
    return output.with_name(output.name + ".partial")


class RunStore:
    """The finished blocks of one run; `stem` names their files."""

    def __init__(
        self,
        folder: Path,
        representations: Mapping[str, type[QuantizedLinear]],
        stem: str = "block",
    ):
        self.folder, self.representations, self.stem = folder, representations, stem

    def another(self, stem: str) -> "RunStore":
        """A second set of blocks in the same folder."""
        return RunStore(self.folder, self.representations, stem)

    def start(
        self, fingerprint: Mapping[str, Any], labels: Mapping[str, Any], *, resume: bool
    ) -> int:
        """Begin or go on; returns the number of finished blocks.

        `fingerprint` is flat: a difference is named by its key. `labels` are names of things
        whose content is in the fingerprint; they are kept, not compared. A run that has no
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
        before = self.started_with()["fingerprint"]
        now = json.loads(json.dumps(fingerprint))
        differences = [
            f"{key} was {before.get(key)!r}, is {now.get(key)!r}"
            for key in sorted(before.keys() | now.keys())
            if before.get(key) != now.get(key)
        ]
        if differences:
            raise ResumeError(
                f"{self.folder} belongs to another run: {'; '.join(differences)}. "
                "Use the same settings, or delete the folder to start again"
            )
        return finished

    def started_with(self) -> dict[str, Any]:
        """ "fingerprint" and "labels" of the run."""
        return json.loads((self.folder / RUN_FILE).read_text())

    def _begin(self, fingerprint: Mapping[str, Any], labels: Mapping[str, Any]) -> None:
        for old in self.folder.glob("*-*.json"):  # of a later stage, made from other blocks
            old.unlink()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as cause:
            raise InputError(
                f"{self.folder} cannot be made ({cause.strerror}); choose another --output"
            ) from cause
        started = {"labels": dict(labels), "fingerprint": dict(fingerprint)}
        _write(self.folder / RUN_FILE, json.dumps(started, indent=1).encode())

    def finished(self) -> list[dict[str, Any]]:
        """The .json of each finished block, in order, up to the first gap."""
        blocks: list[dict[str, Any]] = []
        while (file := self._file(len(blocks), ".json")).exists():
            blocks.append(json.loads(file.read_text()))
        return blocks

    def write_block(
        self,
        index: int,
        layers: Mapping[str, QuantizedLinear],
        facts: Mapping[str, Any],
        gains: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Store one block atomically: its layers and the norm gains that are no longer the
        original ones. `facts` is kept beside it (seconds, what was skipped)."""
        tensors = {
            f"{name}:{part}": tensor.contiguous().cpu()
            for name, layer in layers.items()
            for part, tensor in layer.tensors().items()
        }
        tensors |= {f"{name}:{_GAIN}": gain.cpu() for name, gain in (gains or {}).items()}
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
        facts = {
            **facts,
            "layers": described,
            "gains": list(gains or {}),
            "sha256": hashlib.sha256(data).hexdigest(),
        }
        _write(self._file(index, ".safetensors"), data)
        _write(self._file(index, ".json"), json.dumps(facts, indent=1).encode())

    def read_block(self, index: int) -> dict[str, QuantizedLinear]:
        """The quantized linears of a finished block.

        Raises:
            ResumeError: the file is not the one that was written.
        """
        facts, tensors = self._read(index)
        return {
            name: self._rebuild(name, described, tensors)
            for name, described in facts["layers"].items()
        }

    def read_gains(self, index: int) -> dict[str, Tensor]:
        """The norm gains of a finished block that are no longer the original ones. Raises as
        `read_block`."""
        facts = self._facts(index)
        if not facts["gains"]:
            return {}
        tensors = self._read(index)[1]
        return {name: tensors[f"{name}:{_GAIN}"] for name in facts["gains"]}

    def gains(self) -> dict[str, Tensor]:
        """Those of all finished blocks."""
        blocks = range(len(self.finished()))
        return {name: gain for index in blocks for name, gain in self.read_gains(index).items()}

    def _facts(self, index: int) -> dict[str, Any]:
        return json.loads(self._file(index, ".json").read_text())

    def _read(self, index: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
        facts = self._facts(index)
        file = self._file(index, ".safetensors")
        data = file.read_bytes() if file.exists() else b""
        if hashlib.sha256(data).hexdigest() != facts["sha256"]:
            raise ResumeError(
                f"{file} is damaged (its checksum differs); delete it and the .json files of "
                f"block {index} and later, then --resume"
            )
        return facts, load(data)

    def layers(self) -> "StoredLayers":
        """All quantized linears by full name, one block in memory at a time."""
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
        kind = self.representations[described["kind"]]
        layer = kind.from_tensors(parts, described["metadata"])
        return layer.with_record(**described["record"])

    def _file(self, index: int, suffix: str) -> Path:
        return self.folder / f"{self.stem}-{index:05d}{suffix}"


class StoredLayers(Mapping[str, QuantizedLinear]):
    """A lazy mapping over the finished blocks; keeps the latest block it read."""

    def __init__(self, store: RunStore):
        self.store = store
        self._block_of = {
            name: index for index, facts in enumerate(store.finished()) for name in facts["layers"]
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
