"""Runtimes: the programs that run checkpoints, and what each can run.

RUNTIMES is the one table of it. `--runtime NAME` stands for the settings of its entry, below what a
user sets, and refuses, before any work, what the entry does not hold; `q2n methods` prints it, and
docs/runtimes.md says what was seen of each and what was only read.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from q2n.config.options import CHANGES, table
from q2n.errors import InputError

ALL_BITS = (2, 3, 4, 5, 6, 8)


@dataclass(frozen=True, kw_only=True)
class Loads:
    """A format that a runtime loads, and the grids that it runs."""

    format: str
    """On the command line."""
    bits: tuple[int, ...] = ALL_BITS
    """Widths of uniform grids that it was seen to run (tests/runtimes, tests/formats)."""
    gpu_bits: tuple[int, ...] = ()
    """Those that it runs on GPUs only: read in its sources, not run."""
    group_sizes: tuple[int, ...] | None = None
    """None: any; -1: one group per row."""
    symmetric_only: bool = False
    changes: bool = False
    """Whether it also does what a changed model needs beside its weights: rotates while it runs,
    rounds activations or the cache."""
    multiple: int = 1
    """Of which inputs and outputs of every layer must be."""
    rounding: "Loads | None" = None
    """The same for layers that round their inputs to 8 bits; None: it does not run them."""

    def refusal(self, settings: Mapping[str, Any]) -> str | None:
        """What of the settings it does not run; None if it runs them."""
        bits, size = settings.get("bits"), settings.get("group_size")
        if bits is not None and bits not in (*self.bits, *self.gpu_bits):
            return f"{bits} bits; it runs {_listed((*self.bits, *self.gpu_bits))}"
        if size is not None and self.group_sizes is not None and size not in self.group_sizes:
            return f"groups of {size}; it runs groups of {_listed(self.group_sizes)}"
        if self.symmetric_only and settings.get("symmetric") is False:
            return "asymmetric grids; add --symmetric"
        return None if self.changes else _refused_change(settings)


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """One program, or several that load the same files."""

    loads: tuple[Loads, ...]
    """`--runtime` writes the first that holds what the method stores."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What it stands for; the format where more follows from it."""


RUNTIMES: dict[str, Runtime] = {
    "transformers": Runtime(
        loads=(
            Loads(
                format="compressed-tensors",
                rounding=Loads(
                    format="compressed-tensors", bits=(4, 8), symmetric_only=True, changes=True
                ),
            ),
            Loads(format="gptq_v2", bits=(2, 3, 4, 8)),
            Loads(format="native", changes=True),
            Loads(format="dequantized"),
        )
    ),
    "llama.cpp": Runtime(
        loads=(Loads(format="gguf", group_sizes=(-1,)),),
        settings={"format": "gguf"},
    ),
    "vllm": Runtime(
        loads=(
            Loads(
                format="compressed-tensors",
                bits=(4,),
                gpu_bits=(2, 3, 5, 6, 8),
                group_sizes=(-1, 32, 64, 128),
                multiple=32,
                rounding=Loads(
                    format="compressed-tensors",
                    bits=(8,),
                    gpu_bits=(4,),
                    group_sizes=(-1, 32, 64, 128),
                    symmetric_only=True,
                    changes=True,
                ),
            ),
            Loads(
                format="gptq_v2",
                bits=(4,),
                gpu_bits=(8,),
                group_sizes=(-1, 32, 64, 128),
                symmetric_only=True,
                multiple=32,
            ),
            Loads(format="native"),
        ),
        settings={"dtype": "half"},
    ),
    "mlx": Runtime(
        loads=(Loads(format="mlx", group_sizes=(32, 64, 128)),),
        settings={"format": "mlx", "dtype": "half"},
    ),
    "openvino": Runtime(
        loads=(
            Loads(
                format="compressed-tensors",
                bits=(4,),
                group_sizes=(32, 64, 128),
                symmetric_only=True,
            ),
        ),
        settings={"group_size": 64, "symmetric": True},
    ),
}
"""By name on the command line."""


def runtime_settings(name: str | None) -> dict[str, Any]:
    """What `--runtime NAME` stands for."""
    return {} if name is None else dict(RUNTIMES[name].settings)


def formats_loaded(name: str) -> tuple[str, ...]:
    """Formats that a runtime loads, the first that fits being what `--runtime` writes."""
    return tuple(loads.format for loads in RUNTIMES[name].loads)


def loaded(name: str, format: str, activation_bits: int = 16) -> Loads:
    """How a runtime loads a format whose layers round their inputs to so many bits (16: do not).

    Raises:
        InputError: it does not.
    """
    formats = {loads.format: loads for loads in RUNTIMES[name].loads}
    if format not in formats:
        raise InputError(f"{name} does not load --format {format}; it loads {', '.join(formats)}")
    loads = formats[format]
    return loads.rounding if activation_bits == 8 and loads.rounding is not None else loads


def check_runtime(name: str, format: str, settings: Mapping[str, Any]) -> None:
    """Refuse settings (all of them, flat) that a runtime does not run in a format.

    Raises:
        InputError: saying what it runs.
    """
    refusal = loaded(name, format, settings["activation_bits"]).refusal(settings)
    if refusal is not None:
        raise InputError(f"{name} with --format {format} does not run {refusal}")


def check_sizes(name: str, format: str, layer: str, shape: tuple[int, int]) -> None:
    """Refuse a layer of `shape` (out, in) that a runtime does not run.

    Raises:
        InputError: naming it.
    """
    multiple = loaded(name, format).multiple
    if any(size % multiple for size in shape):
        raise InputError(
            f"{name} runs layers whose inputs and outputs are multiples of {multiple}, and {layer} "
            f"has {shape[1]} and {shape[0]}; leave it out with --ignore, or write --format "
            "dequantized without --runtime"
        )


def runtime_notes(
    name: str | None, format: str, bits: int | None, activation_bits: int = 16
) -> list[str]:
    """What a user must know who runs the result there, in sentences without a full stop."""
    if name is None or bits not in loaded(name, format, activation_bits).gpu_bits:
        return []
    return [f"{name} runs {bits} bits on GPUs only, where q2n's tests have not run it"]


def _refused_change(settings: Mapping[str, Any]) -> str | None:
    """What has to run beside the weights: any change, but a rotation that weights hold alone."""
    in_weights = settings.get("rotate_online") is False
    for name, option in table().owners[CHANGES].items():
        value = settings.get(name, option.default)
        if value != option.default and not (in_weights and name.startswith("rotate")):
            instead = "add --rotate-online false" if name == "rotate" else "leave it out"
            return f"--{name.replace('_', '-')} {value}; {instead}"
    return None


def _listed(values: tuple[int, ...]) -> str:
    return ", ".join(map(str, sorted(values)))
