"""q2n: quantize language models to 2-8 bits, with the null-space step on any method."""

from typing import TYPE_CHECKING, Any

from q2n.registration import register
from q2n.version import __version__

__all__ = [
    "__version__",
    "compare",
    "compare_all",
    "compare_to_kl_base",
    "evaluate",
    "evaluate_generation",
    "evaluate_tasks",
    "inspect",
    "inspect_fidelity",
    "preprocess",
    "quantize",
    "save_kl_base",
]

if TYPE_CHECKING:
    from q2n.api import (
        compare,
        compare_all,
        compare_to_kl_base,
        evaluate,
        evaluate_generation,
        evaluate_tasks,
        inspect,
        inspect_fidelity,
        preprocess,
        quantize,
        save_kl_base,
    )


def __getattr__(name: str) -> Any:
    """Load the library on first use: `q2n.__version__` and `q2n.errors` need not wait for torch."""
    if name in __all__:
        from q2n import api

        return getattr(api, name)
    raise AttributeError(f"module 'q2n' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__


register()
