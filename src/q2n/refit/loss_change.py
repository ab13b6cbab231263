"""What gradient steps did to a loss."""

LossChange = tuple[float, float]
"""A loss on the same windows before the first step and after the last one."""


def rose(before: float, after: float) -> bool:
    """Whether the steps made it worse, or no number of it."""
    return not after <= before
