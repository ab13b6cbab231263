"""Read any checkpoint that q2n writes into a plain dense model, for evaluation and tests."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from q2n.errors import InputError, reason_of
from q2n.formats import FORMATS
from q2n.formats.hf_folder import quantization_config, require_all
from q2n.models.config_file import BAD_CONFIG, read_config
from q2n.option_types import shown


def load_model(
    directory: Path,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    *,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """A dense model in evaluation mode, in `dtype` (default: the checkpoint's).

    `trust_remote_code` lets a checkpoint run its own Python code.

    Raises:
        InputError: a file is missing, truncated or of an unknown kind, or tensors do not fit
            config.json; the message names it.
    """
    directory = Path(directory)
    try:
        model = _read(directory, dtype, trust_remote_code)
    except InputError as cause:
        where = "" if str(cause).startswith(str(directory)) else f"{directory}: "
        raise InputError(f"{where}{cause}") from cause
    except BAD_CONFIG as cause:
        raise InputError(
            f"{directory}: the tensors do not fit config.json: {reason_of(cause)}"
        ) from cause
    return model.to(device).eval()  # type: ignore[arg-type]


def _read(directory: Path, dtype: torch.dtype | None, trust_remote_code: bool) -> PreTrainedModel:
    for format in FORMATS.values():
        if format.container.recognizes(directory):
            return format.container.read(
                directory, format.codec, dtype, trust_remote_code=trust_remote_code
            )
    return _read_plain(directory, dtype, trust_remote_code)


def _read_plain(
    directory: Path, dtype: torch.dtype | None, trust_remote_code: bool
) -> PreTrainedModel:
    """An ordinary Hugging Face checkpoint, whoever wrote it."""
    quantization = quantization_config(directory)
    if quantization is not None:
        method = shown(quantization.get("quant_method"))
        raise InputError(f"quant_method {method} is not read here; load it with transformers")
    config = read_config(directory, trust_remote_code)
    config._attn_implementation = None  # one that works here, whatever the file wants
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        directory,
        config=config,
        dtype=dtype or getattr(config, "dtype", None) or torch.float32,
        output_loading_info=True,
        trust_remote_code=trust_remote_code,
    )
    model, loading = loaded
    require_all(loading["missing_keys"])
    return model
