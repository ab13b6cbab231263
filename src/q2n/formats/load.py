"""Read any checkpoint that q2n writes, and any plain one, as a source of dense tensors or as a
dense model: for evaluation and tests."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import GenerationConfig, PreTrainedModel

from q2n.errors import InputError, NumericalError, reason_of
from q2n.formats.table import ALSO_READ, FORMATS
from q2n.models.auxiliary_files import GENERATION
from q2n.models.config_file import BAD_CONFIG, quantization_config
from q2n.models.model_source import ModelSource
from q2n.models.published import READERS
from q2n.models.source import CheckpointSource, assemble
from q2n.option_types import shown


def open_checkpoint(
    directory: Path, dtype: torch.dtype | None = None, *, trust_remote_code: bool = False
) -> ModelSource:
    """A source of dense tensors in `dtype` (default: the checkpoint's): each quantized weight is
    dequantized in float32 and rounded once, when it is asked for.

    `trust_remote_code` lets a checkpoint run its own Python code.

    Raises:
        InputError: a file is missing, truncated or of an unknown kind, or tensors do not fit
            config.json; the message names it.
    """
    directory = Path(directory)
    wanted = "auto" if dtype is None else str(dtype).removeprefix("torch.")
    with _naming(directory):
        for format in (*ALSO_READ, *FORMATS.values()):
            if format.container.recognizes(directory):
                return format.container.open(
                    directory, format.codec, wanted, trust_remote_code=trust_remote_code
                )
        quantization = quantization_config(directory)
        method = None if quantization is None else quantization.get("quant_method")
        if quantization is not None and method not in [*READERS]:
            raise InputError(
                f"quant_method {shown(method)} is not read here; load it with transformers"
            )
        return CheckpointSource(directory, str(directory), wanted, trust_remote_code)


def load_model(
    directory: Path,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    *,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """A dense model in evaluation mode. Arguments and what is raised: `open_checkpoint`.

    Raises:
        NumericalError: a tensor is NaN or Inf in the dtype.
    """
    source = open_checkpoint(directory, dtype, trust_remote_code=trust_remote_code)
    with _naming(Path(directory)):
        model = assemble(source, device)
        if (Path(directory) / GENERATION).exists():
            model.generation_config = GenerationConfig.from_pretrained(directory)
    return model


@contextmanager
def _naming(directory: Path) -> Iterator[None]:
    """Names the folder in what is raised."""
    try:
        yield
    except InputError as cause:
        where = "" if str(cause).startswith(str(directory)) else f"{directory}: "
        raise InputError(f"{where}{cause}") from cause
    except NumericalError:
        raise
    except BAD_CONFIG as cause:
        raise InputError(
            f"{directory}: the tensors do not fit config.json: {reason_of(cause)}"
        ) from cause
