"""Which modules of a model set the weights of their linears when a checkpoint is loaded.

transformers ends loading with its own initialization of whatever the files lack, and asks the model
class for it, module by module (`_init_weights`). The mixers of Mamba, Mamba 2 and FalconMamba set
`out_proj.weight` there, Falcon that of its own kind of linear; a linear whose weight is packed has
none, and loading fails. It is found by trying: the initialization is run on a copy of each kind of
module with its linears taken out, and of each kind of linear without its weight.
"""

from collections.abc import Iterable
from copy import deepcopy

import torch
from torch import nn
from transformers import PreTrainedModel


def modules_that_set(model: PreTrainedModel, linears: Iterable[str]) -> list[str]:
    """Names of the modules whose initialization needs the weight of one of these linears (full
    names): the linear itself, or what it lies in. Weights may be on the meta device; nothing
    changes."""
    linears = list(linears)
    concerned = dict.fromkeys([*linears, *(name.rpartition(".")[0] for name in linears)])
    kinds: dict[type[nn.Module], bool] = {}
    for name in concerned:
        module = model.get_submodule(name)
        if type(module) not in kinds:
            kinds[type(module)] = _sets_linears(_model_of(model, name), module)
    return [name for name in concerned if kinds[type(model.get_submodule(name))]]


def _model_of(model: PreTrainedModel, name: str) -> PreTrainedModel:
    """The innermost model around a module: transformers asks that one."""
    while name:
        name = name.rpartition(".")[0]
        if isinstance(around := model.get_submodule(name), PreTrainedModel):
            return around
    return model


def _sets_linears(model: PreTrainedModel, module: nn.Module) -> bool:
    """Whether initialization fails on a module that has lost its linears, or its own weight."""
    without = deepcopy(module).to("meta")
    if isinstance(module, nn.Linear):
        del without.weight
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            without.set_submodule(name, nn.Identity())
    try:
        with torch.no_grad():
            model._init_weights(without)
    except AttributeError:
        return True
    return False
