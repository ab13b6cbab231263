"""How much of a model its quantized linears are not: embeddings, norms, an untied head, what was
left out. Bits per weight over all weights need it."""

from collections.abc import Collection
from dataclasses import dataclass

from q2n.models.model_source import ModelSource


@dataclass(frozen=True)
class FullPrecision:
    """Weights that no method quantizes."""

    weights: int
    """Their number; a tied weight counts once, buffers do not."""
    bits: int
    """What all of them take."""
    rounded: int = 0
    """How many of them a container stores in blocks of few bits: embeddings in a GGUF file."""


def full_precision(source: ModelSource, quantized: Collection[str]) -> FullPrecision:
    """What a checkpoint holds besides the `quantized` linears (names of modules)."""
    parameters = dict(source.skeleton().named_parameters())
    kept = parameters.keys() & set(source.names()) - {f"{name}.weight" for name in quantized}
    dtypes = {name: source.written_dtype(name, parameters[name]) for name in kept}
    counts = {name: parameters[name].numel() for name in kept}
    sizes = [(count, count * dtypes[name].itemsize) for name, count in counts.items()]
    sizes += map(source.stored_size, source.untaken)
    return FullPrecision(sum(count for count, _ in sizes), 8 * sum(size for _, size in sizes))
