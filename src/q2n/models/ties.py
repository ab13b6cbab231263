"""Tensors of a model that are one: the head and the embeddings, mostly.

A model class declares what may be tied and the configuration says whether it is. What is stored may
say otherwise. transformers keeps a head that is stored beside embeddings of other values; other
readers tie what config.json ties, and for what they tie they read nothing.
"""

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from q2n.models.skeleton import share_skeleton


def aliases(model: nn.Module) -> dict[str, list[str]]:
    """Name -> the other names, of every parameter that has several."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    several = [group for group in names.values() if len(group) > 1]
    return {name: [x for x in group if x != name] for group in several for name in group}


def set_tied(config: PretrainedConfig, tied: bool) -> PretrainedConfig:
    """The same object, which now says whether the head is the embeddings."""
    for part in (config, config.get_text_config()):
        part.tie_word_embeddings = tied
    return config


def declared_ties(model: PreTrainedModel) -> list[tuple[str, str]]:
    """The pairs of parameters that the model's class may tie, whatever its configuration says;
    none where what it declares does not fit it, as in code for an older transformers."""
    probe = share_skeleton(model)
    set_tied(probe.config, True)
    names = {name for name, _ in probe.named_parameters(remove_duplicate=False)}
    try:
        pairs = probe.get_expanded_tied_weights_keys(all_submodels=True).items()
    except (ValueError, AttributeError):
        return []
    return [pair for pair in pairs if names.issuperset(pair)]


def are_tied(model: PreTrainedModel, pairs: list[tuple[str, str]]) -> bool:
    """Whether each pair is one tensor, or two equal ones that the configuration ties."""
    named = dict(model.named_parameters(remove_duplicate=False))
    equal = torch.equal if model.get_expanded_tied_weights_keys(True) else torch.Tensor.is_set_to
    return bool(pairs) and all(
        named[a] is named[b] or equal(named[a], named[b].to(named[a].device)) for a, b in pairs
    )
