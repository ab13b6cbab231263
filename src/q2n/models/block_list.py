"""Where the decoder blocks of a model are.

They are found by shape and place, not by name: the `nn.ModuleList` with as many entries as the
text model has layers, in the smallest part of the model that holds the input embeddings and such a
list, and there the one that is least deep. So a tower for images or sound beside the text model is
not taken, whatever its size. recording.py sees whether text passes what was found.
"""

from collections.abc import Iterator, Mapping

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from q2n.errors import InputError


def find_blocks(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """Name and list of the decoder blocks.

    Raises:
        InputError: there is no such list, or there are several.
    """
    count = _layers(model.config)
    lists = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count and _of_blocks(module)
    }
    for part in _parts_around_embeddings(model):
        inside = _least_deep({x: blocks for x, blocks in lists.items() if x.startswith(part)})
        if len(inside) == 1:
            return inside.popitem()
        if inside:
            raise InputError(
                f"{type(model).__name__}: it has {len(inside)} lists of {count} blocks "
                f"({', '.join(inside)}); only models with one decoder are supported"
            )
    raise InputError(
        f"{type(model).__name__}: it has no list of {count} decoder blocks; "
        "this architecture is not supported"
    )


def require_decoder(config: PretrainedConfig) -> None:
    """Refuse a model that is more than a decoder of text.

    Raises:
        InputError: it has an encoder, or several text models.
    """
    if config.is_encoder_decoder:
        names = ", ".join(config.architectures or [config.model_type])
        raise InputError(
            f"{names} has an encoder beside its decoder; only models with one decoder are supported"
        )
    _layers(config)


def _layers(config: PretrainedConfig) -> int:
    try:
        return config.get_text_config().num_hidden_layers
    except (ValueError, AttributeError) as cause:
        raise InputError(
            f"{config.model_type}: it is not one text model with a number of layers ({cause}); "
            "this architecture is not supported"
        ) from cause


def _of_blocks(modules: nn.ModuleList) -> bool:
    """Whether the entries have parts: a list of norms or projections is no list of blocks."""
    return all(any(True for _ in module.children()) for module in modules)


def _parts_around_embeddings(model: PreTrainedModel) -> Iterator[str]:
    """Prefixes of names: of the module that holds the embeddings, of what holds that, and so on."""
    embeddings = model.get_input_embeddings()
    name = next(name for name, module in model.named_modules() if module is embeddings)
    while name:
        name = name.rpartition(".")[0]
        yield name and f"{name}."


def _least_deep(lists: Mapping[str, nn.ModuleList]) -> dict[str, nn.ModuleList]:
    """Those with the fewest modules around them. Experts of a block, which may be as many as the
    blocks, are deeper."""
    depth = min((name.count(".") for name in lists), default=0)
    return {name: blocks for name, blocks in lists.items() if name.count(".") == depth}
