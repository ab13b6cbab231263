"""config.json of a checkpoint folder, looked at before anything is built from it.

What transformers makes of a configuration grows with the numbers in it: lists of as many entries as
there are layers while it is read, modules while the model is built. A damaged or hostile file can
ask for more than any machine has, so the numbers are compared with what a model can be before
transformers sees them: no size is larger than any model's, and a checkpoint has at least one tensor
for every layer and every expert.
"""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PretrainedConfig

from q2n.errors import InputError, reason_of
from q2n.models import deepseek  # noqa: F401 - registers a model type
from q2n.models.checkpoint_files import CONFIG_FILE, tensor_files
from q2n.option_types import shown

MOST_BYTES = 2**24
"""The largest in use, with names of a thousand classes, has a hundredth of this."""

BAD_CONFIG = (
    OSError,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    ArithmeticError,
    AssertionError,
    RuntimeError,
    MemoryError,
    ImportError,
    StrictDataclassError,
)
"""What transformers and torch raise on a config.json with impossible values."""

_LARGEST_SIZE = 2**24
_SIZES = ("size", "dim", "width", "heads", "positions", "vocab", "embeddings", "embd", "d_model")
"""Parts of the names of entries that say how large something is."""
_MOST_PARTS = 2**17
_PARTS = ("layer", "depth", "block", "expert", "label")
"""The same for how many parts of one kind there are."""
_LAYERS = ("layer", "depth")
"""Of these a checkpoint has at least one tensor each,"""
_FEW = 1000
"""which is counted if they are more than any model has."""
_NO_COUNTS = ("theta", "base", "eps", "scale", "scaling")
"""Parts of the names of entries that say neither (layer_rope_theta)."""


def read_config(folder: Path, trust_remote_code: bool = False) -> PretrainedConfig:
    """The configuration of a checkpoint folder.

    Raises:
        InputError: there is none, it is no JSON object, no model of transformers, or asks for more
            than a model can be.
    """
    _require_possible(folder, config_values(folder))
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        layers = getattr(config, "num_hidden_layers", 1)
    except BAD_CONFIG as cause:
        raise InputError(
            f"{folder}: {CONFIG_FILE} cannot be read as a transformers model: {reason_of(cause)}"
        ) from cause
    if not isinstance(layers, int) or layers < 1:
        raise InputError(f"{folder}: {CONFIG_FILE} has {shown(layers)} layers; fetch it again")
    return config


def config_values(folder: Path) -> dict[str, Any]:
    """What config.json of a folder holds.

    Raises:
        InputError: there is none, or it is no JSON object of a reasonable size.
    """
    file = folder / CONFIG_FILE
    if not file.is_file():
        raise InputError(f"{folder} holds no {CONFIG_FILE}{_instead(folder)}")
    try:
        with file.open("rb") as stream:
            content = stream.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise InputError(f"{file} has more than {MOST_BYTES >> 20} MB; fetch it again")
        values = json.loads(content.decode())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as cause:
        raise InputError(
            f"{file} is no JSON in UTF-8: {reason_of(cause)}; fetch it again"
        ) from cause
    if not isinstance(values, dict):
        raise InputError(f"{file} is no JSON object but {shown(values)}; fetch it again")
    return values


def quantization_config(directory: Path) -> Mapping[str, Any] | None:
    """The description of the quantized layers in config.json; None where there is none.

    Raises:
        InputError: config.json is missing or damaged, or the description is no object.
    """
    described = config_values(directory).get("quantization_config")
    if described is not None and not isinstance(described, dict):
        raise InputError(
            f"quantization_config in config.json is {shown(described)}; fetch the checkpoint again"
        )
    return described


def _instead(folder: Path) -> str:
    """What lies in a folder that is no checkpoint."""
    if any(folder.glob("*.[gG][gG][uU][fF]")):
        return "; GGUF files are not read: give the checkpoint that they were made from"
    if any(folder.glob("adapter_config.json")):
        return "; it is an adapter: merge it into its model and save that"
    return "; give the folder of a checkpoint as transformers saves it"


def _require_possible(folder: Path, values: Mapping[str, Any]) -> None:
    """Refuse numbers that no model has."""
    for name, number in _numbers(values):
        if any(part in name for part in _NO_COUNTS):
            continue
        counted = any(part in name for part in _PARTS) and "size" not in name
        sized = any(part in name for part in _SIZES)
        most = _MOST_PARTS if counted else _LARGEST_SIZE if sized else math.inf
        if counted and number > _FEW and any(part in name for part in _LAYERS):
            most = len(tensor_files(folder))
        if number > most:
            raise InputError(
                f"{folder}: {CONFIG_FILE} has {name} {shown(number)}, and no model with this "
                f"checkpoint's tensors has more than {most}; fetch both again"
            )


def _numbers(values: Mapping[str, Any]) -> Iterator[tuple[str, int | float]]:
    """Every number in an object and the objects and lists within it, with its name."""
    waiting: list[tuple[str, Any]] = list(values.items())
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, dict):
            waiting.extend(value.items())
        elif isinstance(value, list):
            waiting.extend((name, item) for item in value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield name, value
