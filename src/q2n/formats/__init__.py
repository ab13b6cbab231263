"""Checkpoints: what a quantized model is written as, and the way back."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from q2n.formats.table import FORMATS

__all__ = ["FORMATS"]


def __getattr__(name: str) -> Any:
    """`FORMATS`, not before it is asked for: containers need a finished transformers, and this
    package is imported while transformers itself is (registration.py)."""
    if name == "FORMATS":
        from q2n.formats.table import FORMATS

        return FORMATS
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
