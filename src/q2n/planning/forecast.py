"""What a run will need, stage by stage: memory, disk, time. A pure function of the shapes of the
model, the settings of the run and the rates of the machine."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from q2n.planning.gradients import held
from q2n.planning.load import Load
from q2n.planning.memory import Held, MemoryOfStages
from q2n.planning.rates import Rates
from q2n.planning.seconds import Parts, SecondsOfStages
from q2n.planning.shapes import ModelShapes, Number


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of a run."""

    name: str
    seconds: Number
    bound_by: str
    """What takes most of that: computing, memory, disk, link or exchange; empty of nothing."""
    host_bytes: Number
    """Memory of the host, at most."""
    device_bytes: Number
    """Memory of each device, at most; 0 where the device is the CPU."""


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """One run; bytes are at most, seconds in all."""

    stages: tuple[Stage, ...]
    host_bytes: Number
    device_bytes: Number
    disk_bytes: Number
    """In the working folder and the checkpoint together."""
    checkpoint_bytes: Number
    """Of all tensors of the checkpoint."""
    seconds: Number
    notes: tuple[str, ...]
    """What does not fit, and what would help: sentences without a full stop."""
    title: str = ""
    """What is forecast."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def stage(self, name: str) -> Stage:
        """The one of this name."""
        return next(stage for stage in self.stages if stage.name == name)


def forecast(shapes: ModelShapes, load: Load, rates: Rates) -> Forecast:
    """What this run on this model needs on this machine."""
    memory = MemoryOfStages(shapes, load, rates.libraries_bytes)
    time = SecondsOfStages(shapes, load, rates, memory)
    learned = [_stage("rotate", time.rotate(), memory.rotate())] if load.rotation_steps else []
    widths = [_stage("allocate", time.allocate(), memory.allocate())] if load.trials else []
    passed = [_stage("gradients", time.gradients(), held(memory))] if load.gradients else []
    stages = (
        _stage("load", time.load(), memory.load()),
        *learned,
        *widths,
        *passed,
        _stage("measure", time.measure(), memory.measure()),
        _stage("solve", time.solve(), memory.solve()),
        _stage("refit", time.refit(), memory.refit()),
        _stage("write", time.write(), memory.write()),
        _stage("evaluate", time.evaluate(), memory.evaluate()),
    )
    whole = Forecast(
        stages=stages,
        host_bytes=max(stage.host_bytes for stage in stages),
        device_bytes=max(stage.device_bytes for stage in stages),
        disk_bytes=memory.disk(),
        checkpoint_bytes=memory.checkpoint(),
        seconds=sum(stage.seconds for stage in stages),
        notes=(),
    )
    return replace(whole, notes=tuple(_notes(whole, shapes, load, rates)))


def _stage(name: str, parts: Parts, held: Held) -> Stage:
    longest = max(parts, key=lambda part: parts[part], default="")
    return Stage(
        name=name,
        seconds=sum(parts.values()),
        bound_by=longest if any(parts.values()) else "",
        host_bytes=held.host,
        device_bytes=held.device,
    )


def _notes(found: Forecast, shapes: ModelShapes, load: Load, rates: Rates) -> Iterator[str]:
    """What does not fit; what the run would hold with block inputs on disk."""
    for where, needed, there in (
        ("the host", found.host_bytes, rates.host_bytes),
        ("a device", found.device_bytes, rates.device_bytes),
    ):
        if needed <= there:
            continue
        note = f"{needed / 1e9:.1f} GB do not fit into {where}, which has {there / 1e9:.1f} GB"
        if load.options.activations != "disk":
            other = replace(load, options=replace(load.options, activations="disk"))
            least = MemoryOfStages(shapes, other, rates.libraries_bytes)
            stages = (least.load(), least.measure(), least.solve(), least.write())
            rest = max(x.host if where == "the host" else x.device for x in stages)
            note += f"; with --activations disk a run holds {rest / 1e9:.1f} GB"
        yield note
