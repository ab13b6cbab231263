"""What files call the tensors of a model, there and back, by transformers' own rules.

transformers 5 gave the modules of many models other names than published checkpoints have:
`language_model.model.layers.0` of Gemma 3 is `model.language_model.layers.0` in memory. It renames
on loading and back on saving. What takes the place of a weight (`weight_packed`, `codes`, ..) lies
beside it in the files and is renamed as the weight is.
"""

from collections.abc import Iterable, Mapping

import torch
from jaxtyping import Shaped
from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import rename_source_key, revert_weight_conversion

from q2n.models.loading_plan import conversion_rules


def names_in_model(model: PreTrainedModel, keys: Iterable[str]) -> dict[str, str]:
    """Name in a file -> the model's, for every tensor of a checkpoint. The model has its plain
    linears; its weights may be on the meta device."""
    renamings, _ = conversion_rules(model)
    prefix, state = model.base_model_prefix, model.state_dict()

    def renamed(key: str) -> str:
        name, _ = rename_source_key(key, renamings, [], prefix, state)
        return key if name not in state and key in state else name

    def found(key: str) -> str:
        module, _, part = key.rpartition(".")
        name, weight = renamed(key), renamed(f"{module}.weight")
        if name not in state and weight in state:
            return weight.removesuffix("weight") + part
        return name

    return {key: found(key) for key in keys}


def with_prefix(model: PreTrainedModel, key_of: Mapping[str, str]) -> dict[str, str]:
    """The model's name of a tensor -> its name in a file, with the prefix of the base model where
    `key_of` lacks it ("layers.0.." of a checkpoint without a head). transformers adds it on
    loading, but not to packed weights under every option."""
    renamings, _ = conversion_rules(model)
    return {
        name: key if rename_source_key(key, renamings, [])[0] == name else name
        for name, key in key_of.items()
    }


def saved_names(
    model: PreTrainedModel, tensors: Mapping[str, Shaped[Tensor, "..."]]
) -> dict[str, str]:
    """The model's name of a tensor -> what `save_pretrained` calls it; tensors that it splits or
    merges are left out."""
    markers = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors.items()}
    try:
        keys = revert_weight_conversion(model, dict(markers))
    except ValueError:  # rules of a quantized or distributed model have no way back
        return {}
    name_of = {id(marker): name for name, marker in markers.items()}
    return {name_of[id(x)]: key for key, x in keys.items() if id(x) in name_of}
