"""What may follow a method: the steps of `--nullspace`, by name."""

from collections.abc import Callable

from q2n.methods.nullspace import NullSpace
from q2n.methods.output_step import OutputStep
from q2n.methods.problem import Method

Step = NullSpace | OutputStep

STEPS: dict[str, Callable[[Method], Step]] = {
    "paper": NullSpace.paper,
    "released": NullSpace.released,
    "output": lambda inner: OutputStep(inner=inner, objective="output"),
    "cross": lambda inner: OutputStep(inner=inner, objective="cross"),
    "auto": lambda inner: OutputStep(inner=inner, objective="cross", held_out=True),
}
"""Settings of the step by name; a method in, the method with the step out."""

STEP_OPTIONS: dict[str, type[Step]] = {
    "paper": NullSpace,
    "released": NullSpace,
    "output": OutputStep,
    "cross": OutputStep,
    "auto": OutputStep,
}
"""Whose fields are the options of a step."""
