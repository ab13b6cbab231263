"""Placeholder until the other branch is merged."""

from typing import Any


def spectra_of(settings: Any, layers: Any, reporter: Any) -> Any:
    raise NotImplementedError
