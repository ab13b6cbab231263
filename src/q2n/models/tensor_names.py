"""What files call the tensors of a model, there and back, by transformers' own rules.

transformers 5 gave the modules of many models other names than published checkpoints have:
`language_model.model.layers.0` of Gemma 3 is `model.language_model.layers.0` in memory. It renames
on loading and back on saving. What takes the place of a weight (`weight_packed`, `codes`, ..) lies
beside it in the files and is renamed as the weight is.
"""

from collections.abc import Iterable, Mapping

import torch
from jaxtyping import Int, Shaped
from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import rename_source_key, revert_weight_conversion

from q2n.models.expert_parts import ExpertPart, expert_total, single_keys
from q2n.models.loading_plan import conversion_rules, fused_parts, plan_loading


def names_in_model(model: PreTrainedModel, keys: Iterable[str]) -> dict[str, str]:
    """Name in a file -> the model's, experts one by one (experts.py), for every tensor of a
    checkpoint. The model is as transformers builds it; its weights may be on the meta device."""
    renamings, _ = conversion_rules(model)
    prefix, state = model.base_model_prefix, model.state_dict()
    keys = list(keys)
    weights = {f"{key.rpartition('.')[0]}.weight" for key in keys}
    name_of = {key: name for name, key in plan_loading(model, weights).key_of.items()}

    def found(key: str) -> str:
        module, _, part = key.rpartition(".")
        name, _ = rename_source_key(key, renamings, [], prefix, state)
        name = key if name not in state and key in state else name
        weight = name_of.get(f"{module}.weight")
        return name if name in state or weight is None else weight.removesuffix("weight") + part

    return {key: found(key) for key in keys}


def with_prefix(model: PreTrainedModel, key_of: Mapping[str, str]) -> dict[str, str]:
    """The model's name of a tensor -> its name in a file, with the prefix of the base model where
    `key_of` lacks it ("layers.0.." of a checkpoint without a head). transformers adds it on
    loading, but not to packed weights under every option."""
    renamings, _ = conversion_rules(model)
    return {
        name: key if _leads_to(rename_source_key(key, renamings, [])[0], name) else name
        for name, key in key_of.items()
    }


def _leads_to(renamed: str, name: str) -> bool:
    """Whether a name in a file means a tensor, or another projection of the same expert: merging
    rules, not renaming ones, say what files call those."""
    own, expert = (x.rsplit(".", 2)[0] for x in (renamed, name))
    return renamed == name or (own == expert and expert.rpartition(".")[2].isdigit())


def saved_names(
    model: PreTrainedModel, tensors: Mapping[str, Shaped[Tensor, "..."]]
) -> tuple[dict[str, str], dict[str, dict[str, ExpertPart]]]:
    """What `save_pretrained` calls tensors: the model's name -> the file's, experts one by one, and
    fused tensors as `ModelSource.fused` has them. What it splits or merges otherwise is left out.

    Args:
        model: as transformers builds it.
    """
    fused = fused_parts(model)
    single = [name for parts in fused.values() for name in parts]
    number = {name: place for place, name in enumerate(single)}
    markers = {
        name: _numbered(tensor.ndim, fused[name], number)
        if name in fused
        else torch.empty_like(tensor, device="meta")
        for name, tensor in tensors.items()
    }
    try:
        keys = revert_weight_conversion(model, dict(markers))
    except ValueError:  # rules of a quantized or distributed model have no way back
        return {}, {}
    name_of = {id(marker): name for name, marker in markers.items()}
    same = {key: name_of[id(x)] for key, x in keys.items() if id(x) in name_of}
    saved = {name: key for key, name in same.items() if name not in fused}
    together = {key: fused[name] for key, name in same.items() if name in fused}
    apart = {key: x for key, x in keys.items() if key not in same and not x.is_meta}
    saved |= {single[int(x)]: key for key, x in apart.items() if x.numel() == 1}
    return saved | single_keys(together), together


def _numbered(
    dimensions: int, parts: Mapping[str, ExpertPart], number: Mapping[str, int]
) -> Int[Tensor, "..."]:
    """A fused parameter with one entry for each matrix in it: its number."""
    first = next(iter(parts.values()))
    sizes = (1, first.of) if first.transposed else (first.of, 1)
    experts = expert_total(parts.values())
    marker = torch.zeros(experts, *(sizes if dimensions == 3 else (first.of,)), dtype=torch.int64)
    for name, part in parts.items():
        part.cut(marker).fill_(number[name])
    return marker
