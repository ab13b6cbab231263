"""A complete Hugging Face checkpoint, streamed from the original tensors and the layers.

One tensor at a time: the weight of a quantized linear is replaced by what the format stores
for it; every other tensor (embeddings, norms, biases, an untied lm_head) is copied in the
model's dtype. Everything is written into a folder beside the final one, which is renamed at
the end: the checkpoint is complete or it is not there.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedModel

from q2n.errors import InputError
from q2n.formats.format import Format, StoredLayer
from q2n.formats.runtime import ONLINE, PARTS
from q2n.formats.shards import SHARD_BYTES, ShardWriter
from q2n.layers.quantized import QuantizedLinear
from q2n.models.source import ModelSource


def write_checkpoint(
    directory: Path,
    source: ModelSource,
    layers: Mapping[str, QuantizedLinear],
    format: Format,
    complete: Callable[[Path, int], None] | None = None,
    *,
    gains: Mapping[str, Tensor] | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> int:
    """Write the quantized model; returns the bytes of all its tensors.

    Args:
        directory: must not exist.
        source: the original tensors, by the model's own names.
        layers: module name (without ".weight") -> quantized linear. May load lazily: each is
            read once, in the model's order, after one look at the first.
        complete: called with the folder, loadable but not yet in its place, and the bytes of
            its tensors: what it measures there and writes there appears with the rest.
        gains: norm gains, by tensor name, that take the place of the original ones.
        shard_bytes: tensors of one file, and so about half of the memory used.

    Raises:
        InputError: the folder exists, the disk is too small, or the format cannot hold a
            layer. Nothing is left behind.
    """
    skeleton = source.skeleton()
    replaced = _replaced_weights(source, layers)
    gains = gains or {}
    unquantized = [
        name
        for name, module in skeleton.named_modules()
        if isinstance(module, nn.Linear) and f"{name}.weight" not in replaced
    ]
    with _complete_folder(Path(directory)) as folder:
        _require_space(folder, source, skeleton, layers, format)
        writer = ShardWriter(folder, shard_bytes)
        stored: dict[str, StoredLayer] = {}
        for name in source.names():
            if name not in replaced:
                writer.add(name, gains[name] if name in gains else source.in_model_dtype(name))
                continue
            module = replaced[name]
            layer = layers[module]
            for part, value in format.tensors(module, layer, source.dtype).items():
                writer.add(part, value)
            stored[module] = StoredLayer.of(layer)
        writer.finish()
        quantization = format.quantization_config(stored, unquantized)
        if quantization is not None and source.online is not None:
            quantization[ONLINE] = {PARTS: source.online.to_json()}
        _write_config(folder, source, skeleton, quantization, format)
        source.save_auxiliary(folder)
        if complete is not None:
            complete(folder, writer.total_bytes)
    return writer.total_bytes


def _replaced_weights(source: ModelSource, layers: Mapping[str, QuantizedLinear]) -> dict[str, str]:
    """Tensor name -> module name of every weight that is replaced. Iterates over the mapping's
    names only: looking into it may load a block."""
    replaced = {f"{module}.weight": module for module in layers}
    unknown = sorted(replaced.keys() - set(source.names()))
    if unknown:
        raise InputError(f"{source.label} has no tensor {unknown[0]!r} to replace")
    return replaced


def _write_config(
    folder: Path,
    source: ModelSource,
    skeleton: PreTrainedModel,
    quantization: dict[str, Any] | None,
    format: Format,
) -> None:
    config = json.loads(source.config.to_json_string())
    config.pop("quantization_config", None)
    config["architectures"] = [type(skeleton).__name__]
    config["dtype"] = str(source.dtype).removeprefix("torch.")
    if quantization is not None:
        config["quantization_config"] = quantization
        if format.config_copy:
            (folder / format.config_copy).write_text(json.dumps(quantization, indent=1) + "\n")
    (folder / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")


@contextmanager
def _complete_folder(directory: Path) -> Iterator[Path]:
    """A folder to write into, renamed to `directory` on success and removed on failure."""
    if directory.exists():
        raise InputError(f"{directory} exists already; choose another output folder")
    folder = directory.with_name(f".{directory.name}.writing")
    try:
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
        folder.mkdir(parents=True)
        yield folder
        folder.rename(directory)
    except (OSError, SafetensorError) as cause:
        raise InputError(
            f"{directory} cannot be written ({cause}); free space or choose another output folder"
        ) from cause
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _require_space(
    folder: Path,
    source: ModelSource,
    skeleton: PreTrainedModel,
    layers: Mapping[str, QuantizedLinear],
    format: Format,
) -> None:
    """Refuse a disk that is too small, judged by what the first layer takes in this format."""
    itemsize = torch.finfo(source.dtype).bits / 8
    weights = {name: skeleton.get_parameter(f"{name}.weight").numel() for name in layers}
    needed = source.size_bytes() - itemsize * sum(weights.values())
    if weights:
        first = next(iter(weights))
        stored = format.tensors(first, layers[first], source.dtype).values()
        per_weight = sum(x.numel() * x.element_size() for x in stored) / weights[first]
        needed += per_weight * sum(weights.values())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(
            f"the checkpoint needs about {needed / 1e9:.2f} GB, and {folder.parent} has "
            f"{free / 1e9:.2f} GB free; free space or choose another output folder"
        )
