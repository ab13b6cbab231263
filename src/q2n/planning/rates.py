"""How fast and how large a machine is: measured in a few seconds, or stated in a file.

Rates are those that are reached, not those of a data sheet: a file of stated rates has the
efficiency in its numbers.
"""

import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import linear

from q2n.errors import InputError
from q2n.linalg.forward_products import forward_products
from q2n.models.devices import total_bytes
from q2n.option_types import shown

TEXT_BYTES = 7e7
"""Of a tokenizer of 50 000 words and the text of the windows, as measured."""


@dataclass(frozen=True, kw_only=True)
class Rates:
    """A machine with one device or several alike. Of a CPU the device is the host."""

    product: float
    """Operations a second of products in the model's dtype, on one device."""
    float32: float
    """The same of products in float32: Gram matrices, factors, error feedback."""
    memory: float
    """Bytes a second that a device reads from its own memory."""
    link: float
    """Bytes a second from the host to a device."""
    between: float
    """Bytes a second from one device to another."""
    disk: float
    """Bytes a second from and to the disk."""
    device_bytes: float
    """Memory of one device."""
    host_bytes: float
    """Memory of the host."""
    libraries_bytes: float
    """What a process holds before it has read a weight: libraries, compiled kernels, tokenizer and
    text."""

    @classmethod
    def from_file(cls, file: Path, rest: Callable[[], "Rates"]) -> "Rates":
        """From a JSON object of any of these numbers; `rest` gives those that it lacks.

        Raises:
            InputError: it is no such object.
        """
        try:
            given = json.loads(file.read_text())
        except (OSError, ValueError) as cause:
            raise InputError(f"--rates {file} cannot be read as JSON: {cause}") from cause
        names = [item.name for item in fields(cls)]
        if not isinstance(given, dict) or (unknown := sorted(given.keys() - set(names))):
            what = shown(unknown[0]) if isinstance(given, dict) else "no object"
            raise InputError(f"--rates {file} has {what}; it takes {', '.join(names)}")
        for name, value in given.items():
            if not isinstance(value, int | float) or not value > 0 or value is True:
                raise InputError(f"--rates {file}: {name} is {shown(value)}, no number above 0")
        numbers: dict[str, Any] = {name: float(value) for name, value in given.items()}
        return cls(**numbers) if len(numbers) == len(names) else replace(rest(), **numbers)

    def to_json(self) -> dict[str, float]:
        """The numbers by name."""
        return asdict(self)


def measured_rates(device: torch.device, dtype: torch.dtype) -> Rates:
    """The rates of this machine, from short probes.

    Raises:
        InputError: the temporary folder cannot be written.
    """
    block = torch.ones(2**24, device=device)
    copied = _seconds(lambda: block.clone(), device)
    moved = _seconds(lambda: block.cpu().to(device, copy=True), device)
    return Rates(
        product=_layer_rate(device, dtype),
        float32=product_rate(device, torch.float32),
        memory=2 * block.nbytes / copied,
        link=2 * block.nbytes / moved,
        between=block.nbytes / moved,
        disk=_disk_rate(),
        device_bytes=total_bytes(device),
        host_bytes=total_bytes(torch.device("cpu")),
        libraries_bytes=_resident() + TEXT_BYTES,
    )


def product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a product of square matrices, measured now."""
    a = torch.ones(1024, 1024, device=device, dtype=dtype)
    return 2 * 1024**3 / _seconds(lambda: a @ a, device)


def _layer_rate(device: torch.device, dtype: torch.dtype) -> float:
    """The same of a linear layer, as forward passes have it."""
    a = torch.ones(1024, 1024, device=device, dtype=dtype)
    with forward_products(device):
        return 2 * 1024**3 / _seconds(lambda: linear(a, a), device)


def _seconds(work: Callable[[], Any], device: torch.device, times: int = 4) -> float:
    """Of the fastest call, which other processes disturb least; the first is not counted."""

    def ready() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    def once() -> float:
        start = ready()
        work()
        return ready() - start

    once()
    return min(once() for _ in range(times))


def _disk_rate() -> float:
    """Bytes a second that reach the disk of the temporary folder."""
    data = os.urandom(2**25)
    try:
        with tempfile.TemporaryFile() as file:
            start = time.perf_counter()
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            return len(data) / (time.perf_counter() - start)
    except OSError as cause:
        raise InputError(f"{tempfile.gettempdir()} cannot be written: {cause}") from cause


def _resident() -> float:
    """Bytes of this process in memory; files that are mapped count."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:  # not Linux
        return 4e8
    return float(pages * os.sysconf("SC_PAGE_SIZE"))
