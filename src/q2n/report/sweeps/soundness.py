"""What the types of a record do not say: lists that belong together are of one length, numbers can
be computed with."""

from typing import Any

from q2n.report.experiment import ExperimentRecord

LARGEST = 1e100
"""Of a number; its square is still one."""
FREE = ("settings", "tried", "chosen", "labels", "compare", "places")
"""Fields that hold what a plan says: nothing is computed with it."""


def require_sound(record: ExperimentRecord) -> None:
    """
    Raises:
        ValueError: tables or figures would fail on it; the message says where.
    """
    for kind, layer in record.layers.items():
        for name in ("output_error", "output_error_before", "alpha", "output_scales"):
            values = getattr(layer, name)
            if len(values) not in (0, len(layer.blocks)):
                raise ValueError(
                    f"layers.{kind}: {name} has {len(values)} values for {len(layer.blocks)} blocks"
                )
    for number, spectrum in enumerate(record.spectra):
        if not 0 < len(spectrum.places) == len(spectrum.values):
            raise ValueError(f"spectra.{number}: places and values are not as many, or none")
    for name, value in vars(record).items():
        if name not in FREE:
            _require_numbers(value, name)


def _require_numbers(value: Any, place: str) -> None:
    """Within any nesting."""
    if isinstance(value, int | float):
        if abs(value) > LARGEST or (value < 0 and place.endswith("_error")):
            raise ValueError(f"{place}: {value:.3g} is no number that a measurement gives")
    elif isinstance(value, dict):
        for key, each in value.items():
            _require_numbers(each, f"{place}.{key}")
    elif isinstance(value, list | tuple):
        for each in value:
            _require_numbers(each, place)
    elif hasattr(value, "__dataclass_fields__"):
        _require_numbers(vars(value), place)
