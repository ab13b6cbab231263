"""config.json of a checkpoint folder that is written."""

import json
from typing import Any

from transformers import PreTrainedModel

from q2n.models.auxiliary_files import drop_code
from q2n.models.model_source import ModelSource


def written_config(source: ModelSource, model: PreTrainedModel) -> dict[str, Any]:
    """The configuration of a source as that of a plain model of its own, `model`'s class."""
    config = json.loads(source.config.to_json_string())
    config.pop("quantization_config", None)
    config.pop("transformers_weights", None)  # names a file of the original
    if not source.trust_remote_code:
        drop_code(config)
    config["architectures"] = [type(model).__name__]
    config["dtype"] = str(source.dtype).removeprefix("torch.")
    return config


def as_json(config: dict[str, Any]) -> str:
    """The text of the file."""
    return json.dumps(config, indent=1, sort_keys=True) + "\n"
