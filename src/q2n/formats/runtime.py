"""What a loaded model must do besides multiplying: the `runtime` entry of its quantization config.

Some methods leave work for the time when the model runs (rotations of activations, quantized
activations, a quantized KV cache). Without it such a model gives wrong text and no error. The
entry maps a name to a JSON description; every reader hands it to `attach_runtime` once the weights
are in their places. A name that is not known here is refused.
"""

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from q2n.errors import InputError, reason_of
from q2n.option_types import shown

RUNTIME = "runtime"
"""The entry of the quantization config."""
PARTS = "parts"
"""The name in it of `RuntimeParts` (transforms/runtime.py)."""


def _attach_parts(model: nn.Module, description: Any) -> None:
    # Not before it is needed: this file is read while transformers is still being imported.
    from q2n.transforms.runtime import attach_described

    attach_described(model, description)


ATTACH: dict[str, Callable[[nn.Module, Any], None]] = {PARTS: _attach_parts}
"""By name: changes the loaded model in place, as its description says."""


def attach_runtime(model: nn.Module, runtime: Any) -> None:
    """Make the model do what the entry says.

    Raises:
        InputError: something is asked for that is not known here.
    """
    if not isinstance(runtime, Mapping):
        raise InputError(f"runtime in config.json is {shown(runtime)}; fetch the checkpoint again")
    unknown = runtime.keys() - ATTACH.keys()
    if unknown:
        raise InputError(
            f"the checkpoint needs {shown(min(unknown))} while it runs, which is not known here; "
            "another release of q2n wrote it: use that one"
        )
    for name, description in runtime.items():
        try:
            ATTACH[name](model, description)
        except InputError:
            raise
        except (LookupError, TypeError, AttributeError, ValueError, RuntimeError) as cause:
            raise InputError(
                f"{RUNTIME} in config.json is damaged ({name}: {reason_of(cause)}); fetch the "
                "checkpoint again"
            ) from cause
