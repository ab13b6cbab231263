"""Under what a cell was measured: versions, machine, memory."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from q2n.version import __version__

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def software() -> dict[str, str]:
    """Versions of what the results depend on."""
    found = {"q2n": __version__, "python": platform.python_version()}
    for name in ("torch", "transformers", "numba", "lm-eval"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, str]:
    """Processor, threads, GPU."""
    found = {
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
    }
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def reset_peak() -> None:
    """Begin to count the largest resident memory again, where the system can (Linux: proc(5))."""
    try:
        _RESET.write_text("5")
    except OSError:
        pass


def peak_bytes() -> int | None:
    """The largest resident memory since `reset_peak`, or of the process where that does nothing;
    None where nobody says."""
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    peaks = [int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")]
    return peaks[0] if peaks else None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
