"""Packed modules in the places of a model's own, before it is loaded.

A linear becomes a `PackedLinear`, an embedding a `PackedEmbedding`. transformers ties a head to the
embeddings by the names of parameters: `lm_head.weight` to `model.embed_tokens.weight`. Packed, each
of the two modules has several (`codes`, `scale`, ..), and these are tied one by one: the head
computes with the very tensors in which rows are looked up, and files hold them once.
"""

from collections.abc import Mapping

from torch import nn
from transformers import PreTrainedModel

from q2n.errors import InputError
from q2n.formats.packed_embedding import can_pack, pack_embedding
from q2n.formats.packed_linear import PackedLinear
from q2n.formats.stored import StoredLayer
from q2n.models.experts import one_by_one
from q2n.models.loading_plan import fused_parts

Layers = Mapping[str, StoredLayer]
"""By the name of the module."""


def take_experts_apart(model: PreTrainedModel, layers: Layers) -> set[str]:
    """Experts one by one (models/experts.py) in the mixtures of which a layer is described. Returns
    the names of the fused parameters that are gone."""
    gone = set[str]()
    for fused, parts in fused_parts(model).items():
        if any(name.removesuffix(".weight") in layers for name in parts):
            gone.add(fused)
    for mixture in {fused.rpartition(".")[0] for fused in gone}:
        gone |= {f"{mixture}.{name}" for name, _ in model.get_submodule(mixture).named_parameters()}
        one_by_one(model.get_submodule(mixture))
    return gone


def require_modules(model: PreTrainedModel, layers: Layers) -> None:
    """Hold what is described against the modules of a model.

    Raises:
        InputError: it has no such module, or ties two that are described.
    """
    modules = dict(model.named_modules())
    for name, stored in layers.items():
        kinds = (nn.Linear, nn.Embedding) if can_pack(stored) else (nn.Linear,)
        module = modules.get(name)
        if not isinstance(module, kinds) or tuple(module.weight.shape) != stored.shape:
            raise InputError(
                f"{type(model).__name__} has no {' or '.join(x.__name__.lower() for x in kinds)} "
                f"{name!r} of {stored.shape}, which the checkpoint holds; load it with "
                "AutoModelForCausalLM"
            )
    for name, source in _ties(model):
        if name in layers and source in layers:
            raise InputError(
                f"quantization_config in config.json describes {name!r} and {source!r}, which are "
                "tied to each other; fetch it again"
            )


def pack_modules(model: PreTrainedModel, layers: Layers) -> None:
    """Put packed modules, on the meta device, in the places of those that `layers` describe, all
    of which the model has, and of those that are tied to them."""
    pairs = [pair for tie in _ties(model) for pair in (tie, tie[::-1])]
    tied = {name: source for name, source in pairs if source in layers}
    _declare_ties(model, layers)
    for name, stored in layers.items():
        _pack(model, name, stored)
    for name, of in tied.items():
        module, source = _pack(model, name, layers[of]), model.get_submodule(of)
        for part in layers[of].tensors:
            module.register_parameter(part, source.get_parameter(part))


def _pack(model: PreTrainedModel, name: str, stored: StoredLayer) -> nn.Module:
    module = model.get_submodule(name)
    if isinstance(module, nn.Embedding):
        return pack_embedding(module, stored)
    assert isinstance(module, nn.Linear)
    packed = PackedLinear(stored, module.bias)
    model.set_submodule(name, packed)
    return packed


def _ties(model: PreTrainedModel) -> list[tuple[str, str]]:
    """Pairs of modules of which the first has the weight of the second."""
    ties = model.get_expanded_tied_weights_keys(all_submodels=True)
    return [(_module_of(name), _module_of(source)) for name, source in ties.items()]


def _module_of(weight: str) -> str:
    return weight.removesuffix(".weight")


def _declare_ties(model: PreTrainedModel, layers: Layers) -> None:
    """Tell transformers of the parameters that will be tied in place of weights."""
    for prefix, part in model.named_modules():
        if isinstance(part, PreTrainedModel):
            start = f"{prefix}." if prefix else ""
            if own := part.get_expanded_tied_weights_keys(all_submodels=False):
                part._tied_weights_keys = _part_by_part(own, start, layers)
            part.all_tied_weights_keys = _part_by_part(part.all_tied_weights_keys, start, layers)


def _part_by_part(ties: Mapping[str, str], start: str, layers: Layers) -> dict[str, str]:
    """Ties of weights whose full names begin with `start`, those of packed ones by their parts."""
    found: dict[str, str] = {}
    for pair in ties.items():
        target, source = map(_module_of, pair)
        stored = layers.get(start + source) or layers.get(start + target)
        if stored is None:
            found |= dict([pair])
        else:
            found |= {f"{target}.{part}": f"{source}.{part}" for part in stored.tensors}
    return found
