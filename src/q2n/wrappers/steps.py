"""What may follow a method: the steps of `--nullspace`, by name."""

from collections.abc import Callable

from q2n.wrappers.nullspace import NullSpace
from q2n.wrappers.output_scales import OutputScales

Step = NullSpace | OutputScales

STEPS: dict[str, Callable[..., Step]] = {
    "paper": NullSpace.paper,
    "released": NullSpace.released,
    "output": OutputScales.output,
    "cross": OutputScales.cross,
    "auto": OutputScales.auto,
}
"""Presets by name: `STEPS[name](method, **options)` is the method with the step after it."""

STEP_OPTIONS: dict[str, type[Step]] = {
    name: NullSpace if name in ("paper", "released") else OutputScales for name in STEPS
}
"""Whose fields the options of a preset are."""
