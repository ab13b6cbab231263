"""Read any checkpoint that q2n writes into a plain dense model.

This is the reader of evaluation and tests. It unpacks with the inverse of our own packer
and shares no code with the packed-weight readers of transformers, so agreement between the
two says something. The weight is dequantized in float32 and rounded once to the dtype asked for.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
)

from q2n.errors import InputError
from q2n.formats import FORMATS
from q2n.formats.format import PackedFormat
from q2n.formats.runtime import ONLINE, attach_online
from q2n.models.checkpoint_files import TensorFiles
from q2n.models.skeleton import build_skeleton


def load_model(
    directory: Path,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    *,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """A dense model in evaluation mode, in `dtype` (default: the checkpoint's).

    `trust_remote_code` lets an unquantized checkpoint run its own Python code.

    Raises:
        InputError: a file is missing, truncated or of an unknown kind, or tensors do not fit
            config.json; the message names it.
    """
    directory = Path(directory)
    config = _config(directory, trust_remote_code)
    wanted: torch.dtype = dtype or getattr(config, "dtype", None) or torch.float32
    files = TensorFiles(directory)
    quantization = getattr(config, "quantization_config", None)
    try:
        if quantization is None:
            model, missing = _load_plain(directory, wanted, trust_remote_code)
        else:
            format = _packed_format(quantization)
            del config.quantization_config
            state = dict(_dense_tensors(files, format, quantization, wanted))
            model, missing = _assemble(directory, config, state, wanted)
            attach_online(model, quantization.get(ONLINE, {}))
    except InputError as cause:
        raise InputError(f"{directory}: {cause}") from cause
    except (RuntimeError, ValueError) as cause:
        raise InputError(f"{directory}: the tensors do not fit config.json: {cause}") from cause
    if missing:
        raise InputError(f"{directory}: tensors are missing: {sorted(missing)[:5]}")
    return model.to(device).eval()  # type: ignore[arg-type]


def _load_plain(
    directory: Path, dtype: torch.dtype, trust_remote_code: bool
) -> tuple[PreTrainedModel, set[str]]:
    """(model, names of missing tensors) of an ordinary checkpoint."""
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        directory, dtype=dtype, output_loading_info=True, trust_remote_code=trust_remote_code
    )
    model, found = loaded
    return model, set(found["missing_keys"])


def _assemble(
    directory: Path, config: PretrainedConfig, state: dict[str, Tensor], dtype: torch.dtype
) -> tuple[PreTrainedModel, set[str]]:
    """(model, names of missing tensors) from tensors under the model's own names."""
    model = build_skeleton(config, dtype)
    model.load_state_dict(state, strict=False, assign=True)
    model.tie_weights()
    if (directory / "generation_config.json").exists():
        model.generation_config = GenerationConfig.from_pretrained(directory)
    return model, {name for name, tensor in model.named_parameters() if tensor.is_meta}


def _config(directory: Path, trust_remote_code: bool) -> PretrainedConfig:
    try:
        return AutoConfig.from_pretrained(directory, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as cause:
        raise InputError(f"{directory}: config.json cannot be read: {cause}") from cause


def _packed_format(quantization: Mapping[str, Any]) -> PackedFormat:
    method = quantization.get("quant_method")
    for format in FORMATS.values():
        if isinstance(format, PackedFormat) and format.quant_method == method:
            return format
    raise InputError(f"quant_method {method!r} is not read here")


def _dense_tensors(
    files: TensorFiles, format: PackedFormat, quantization: Mapping[str, Any], dtype: torch.dtype
) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the model, the quantized linears as dense weights."""
    packed = format.packed_layers(files.file_of, quantization)
    stored: set[str] = set()
    for module, layer in packed.items():  # in the order of the files: one is open at a time
        keys = {part: f"{module}.{part}" for part in layer.parts}
        parts = {part: files.tensor(key) for part, key in keys.items() if key in files.file_of}
        yield f"{module}.weight", layer.dense(parts).to(dtype)
        stored.update(keys.values())
    for key in files.file_of:
        if key not in stored:
            tensor = files.tensor(key)
            yield key, tensor.to(dtype) if tensor.is_floating_point() else tensor
