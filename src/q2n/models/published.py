"""Originals that are published in fewer than 16 bits and that are read as dense ones.

Their config.json has a quantization_config. What it says is left out of the model's configuration:
nothing of it is in what is run and written.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig

from q2n.errors import InputError
from q2n.models.checkpoint_files import StoredTensors
from q2n.models.config_file import config_values, read_config
from q2n.models.dense_files import DenseFiles
from q2n.models.fp8_files import fp8_reader
from q2n.models.mxfp4_files import MXFP4Files
from q2n.option_types import shown

Reader = Callable[[StoredTensors, torch.dtype], DenseFiles]
"""The files of a folder and the dtype of the model -> the dense ones that they stand for."""

READERS: Mapping[str, Callable[[Path, Mapping[str, Any]], Reader]] = {
    "fp8": fp8_reader,
    "mxfp4": lambda folder, described: MXFP4Files,
}
"""The `quant_method` of config.json -> the folder and the rest of what it says -> a reader."""


def original_config(folder: Path, trust_remote_code: bool = False) -> PretrainedConfig:
    """The configuration of an original, without what it says of its files. One in fewer bits that
    names no dtype has bfloat16, as its readers take it.

    Raises:
        InputError: as `reader_of` and `read_config`.
    """
    published = reader_of(folder) is not None
    config = read_config(folder, trust_remote_code)
    if published:
        del config.quantization_config
        config.dtype = config.dtype or torch.bfloat16
    return config


def reader_of(folder: Path) -> Reader | None:
    """How an original in fewer bits is read; None of one in 16 or 32 bits.

    Raises:
        InputError: the checkpoint is quantized in another way.
    """
    described: Any = config_values(folder).get("quantization_config")
    if described is None:
        return None
    method = described.get("quant_method") if isinstance(described, dict) else None
    if not isinstance(method, str) or method not in READERS:
        how = f" ({shown(method)})" if method else ""
        raise InputError(
            f"{folder} is quantized already{how}: config.json has a quantization_config; quantize "
            "the original checkpoint"
        )
    return READERS[method](folder, described)
