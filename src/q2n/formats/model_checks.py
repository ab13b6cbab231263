"""Models that the readers of a format do not load, or not without harm."""

from transformers import PreTrainedModel

from q2n.errors import InputError
from q2n.models.auto_classes import has_towers
from q2n.models.initialization import modules_that_set
from q2n.models.targets import targets_in

_OTHERS = "use --format dequantized, native or compressed-tensors"


def require_text_alone(format: str, model: PreTrainedModel) -> None:
    """Refuse a text model beside towers for images or sound, where readers were not seen to leave
    these alone.

    Raises:
        InputError: naming the model.
    """
    if has_towers(model):
        raise InputError(
            f"{type(model).__name__} is more than a text model, and readers of {format} were not "
            f"seen to load the rest of it unharmed; {_OTHERS}"
        )


def require_plain_initialization(format: str, model: PreTrainedModel) -> None:
    """Refuse a model that transformers cannot load with packed linears (initialization.py).

    Raises:
        InputError: naming the module.
    """
    linears = [name for name, target in targets_in(model).items() if not target.transposed]
    if setting := modules_that_set(model, linears):
        raise InputError(
            f"{type(model).__name__} is not loaded from {format}: transformers initializes the "
            f"weights in {setting[0]}, and packed linears have none; {_OTHERS}"
        )
