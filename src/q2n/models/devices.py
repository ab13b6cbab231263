"""Devices and dtypes by their names."""

import torch

from q2n.errors import InputError

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def parse_dtype(name: str) -> torch.dtype:
    """float32, float16 or bfloat16 from its name.

    Raises:
        InputError: another name.
    """
    if name not in DTYPES:
        raise InputError(f"dtype {name!r} is not one of auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def requested_dtype(name: str | None) -> torch.dtype | None:
    """As `parse_dtype`; None for "auto" or None: the checkpoint's own."""
    return None if name is None or name == "auto" else parse_dtype(name)


def parse_device(name: str) -> torch.device:
    """A device that can be used now; "auto" is cuda where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as cause:
        raise InputError(f"device {name!r} cannot be used: {cause}") from cause
