"""What may follow a method: the steps of `--nullspace`, by name."""

from collections.abc import Callable

from q2n.methods.nullspace import NullSpace
from q2n.methods.output_step import OutputStep

Step = NullSpace | OutputStep

STEPS: dict[str, Callable[..., Step]] = {
    "paper": NullSpace.paper,
    "released": NullSpace.released,
    "output": OutputStep.output,
    "cross": OutputStep.cross,
    "auto": OutputStep.auto,
}
"""Presets by name: `STEPS[name](method, **options)` is the method with the step after it."""

STEP_OPTIONS: dict[str, type[Step]] = {
    name: NullSpace if name in ("paper", "released") else OutputStep for name in STEPS
}
"""Whose fields the options of a preset are."""
