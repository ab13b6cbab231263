"""Devices and dtypes by their names."""

import math
import os

import torch

from q2n.errors import InputError, reason_of
from q2n.option_types import shown

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def parse_dtype(name: str) -> torch.dtype:
    """float32, float16 or bfloat16 from its name.

    Raises:
        InputError: another name.
    """
    if name not in DTYPES:
        raise InputError(f"dtype {shown(name)} is not one of auto, half, {', '.join(DTYPES)}")
    return DTYPES[name]


def dtype_of_run(name: str, own: torch.dtype) -> torch.dtype:
    """The dtype in which a model of dtype `own` is run and written: its own for "auto", bfloat16
    instead of float32 for "half", else as `parse_dtype`."""
    if name == "half":
        return torch.bfloat16 if own == torch.float32 else own
    return own if name == "auto" else parse_dtype(name)


def requested_dtype(name: str | None) -> torch.dtype | None:
    """As `parse_dtype`; None for "auto" or None: the checkpoint's own."""
    return None if name is None or name == "auto" else parse_dtype(name)


def parse_device(name: str | torch.device) -> torch.device:
    """A device that can be used now; "auto" is cuda where there is one.

    Raises:
        InputError: there is none of this name, or it does not compute.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        one = torch.ones(1, device=name)
        one.add(1).item()  # no number ever comes from the meta device
    except (RuntimeError, AssertionError, ImportError, ValueError, TypeError) as cause:
        there = ", ".join(["cpu", *(f"cuda:{n}" for n in range(torch.cuda.device_count()))])
        raise InputError(
            f"device {shown(str(name))} cannot be used: {reason_of(cause)}; "
            f"torch finds here: {there}"
        ) from cause
    return one.device


def free_bytes(device: torch.device) -> float:
    """Memory of a device that nobody holds; of the host all of it, for what others hold of it may
    be given back."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    return total_bytes(device)


def total_bytes(device: torch.device) -> float:
    """Memory of a device; of the host for the CPU. Infinite where the system does not say."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[1])
    if device.type != "cpu":
        return math.inf
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (ValueError, OSError, AttributeError):
        return math.inf
