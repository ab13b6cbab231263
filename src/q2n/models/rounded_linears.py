"""Which linears of a model round their inputs: those that are quantized."""

from fnmatch import filter as matching

from transformers import PreTrainedModel

from q2n.errors import InputError
from q2n.grids.per_token import TokenGrid
from q2n.models.block_list import find_blocks
from q2n.models.experts import experts_in
from q2n.models.targets import LayerFilter, small_targets, targets_in


def rounded_linears(
    model: PreTrainedModel, layers: LayerFilter, grid: TokenGrid
) -> tuple[str, ...]:
    """Their names, or a pattern for those of one name in all blocks.

    Raises:
        InputError: groups of the grid do not divide the inputs of one, or the model has experts.
    """
    list_name, blocks = find_blocks(model)
    if next(experts_in(model), None) is not None:
        raise InputError(
            f"inputs of experts, as {type(model).__name__} has them, cannot be rounded yet; leave "
            "out --activation-bits"
        )
    small = small_targets({f"{list_name}.{i}": block for i, block in enumerate(blocks)})
    quantized: dict[str, str] = {}
    for index, block in enumerate(blocks):
        for inner, target in targets_in(block).items():
            name = f"{list_name}.{index}.{inner}"
            if layers.keeps(name, small):
                grid.check(target.shape[1], f"the input of {name}")
                quantized[name] = f"{list_name}.*.{inner}"
    modules = [name for name, _ in model.named_modules()]
    safe = {x for x in set(quantized.values()) if quantized.keys() >= set(matching(modules, x))}
    return tuple(dict.fromkeys(x if x in safe else name for name, x in quantized.items()))
