"""Folders in the native format, for tests."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from q2n.formats import FORMATS
from q2n.formats.format import Format
from q2n.layers.quantized import QuantizedLinear
from q2n.models.source import open_source

FORMAT = FORMATS["native"]


def written(
    folder: Path,
    model: PreTrainedModel,
    layers: Mapping[str, QuantizedLinear],
    format: Format = FORMAT,
) -> Path:
    format.write(folder, open_source(model), layers)
    return folder


def quantization_config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())["quantization_config"]
