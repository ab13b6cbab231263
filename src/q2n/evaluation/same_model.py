"""Whether two models are one model but for what was quantized in its blocks."""

from torch import Tensor

from q2n.errors import InputError
from q2n.models.blocks import BlockwiseModel

_ROUNDING = 2**-8
"""Twice the relative error of a bfloat16."""


def changed_outside(original: BlockwiseModel, quantized: BlockwiseModel) -> list[str]:
    """Names of the tensors outside the blocks in which two models differ by more than rounding.

    Raises:
        InputError: their linears or their embeddings differ: they are not one model, or not in the
            same basis.
    """
    ours, theirs = (
        {name: target.shape for name, target in model.targets().items()}
        for model in (quantized, original)
    )
    if ours != theirs:
        raise _unlike(f"{min(dict(ours.items() ^ theirs.items()))} is another layer in each")
    blocks = original.block_name(0).removesuffix("0")
    common = set(original.source.names()) & set(quantized.source.names())
    distances = {
        name: _distance(*(model.source.in_model_dtype(name) for model in (original, quantized)))
        for name in sorted(common)
        if not name.startswith(blocks)
    }
    model = original.without_blocks
    embeddings = next(n for n, x in model.named_modules() if x is model.get_input_embeddings())
    if not (distance := distances[f"{embeddings}.weight"]) < _ROUNDING:
        raise _unlike(f"their embeddings do, by {distance:.0%}")
    return [name for name, distance in distances.items() if not distance < _ROUNDING]


def _unlike(how: str) -> InputError:
    return InputError(
        f"the checkpoint and the reference differ in more than rounded weights: {how}; give the "
        "model that was quantized as --reference"
    )


def _distance(expected: Tensor, actual: Tensor) -> float:
    """Relative."""
    if expected.shape != actual.shape:
        return 1.0
    size = float(expected.float().norm())
    return float((actual.float() - expected.float()).norm()) / size if size else 0.0
