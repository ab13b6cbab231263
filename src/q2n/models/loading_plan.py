"""Which tensors of a checkpoint make which of a model's: transformers' own rules.

transformers has renamed tensors over time, adds or drops the prefix of the base model, and merges
some on loading: the experts of a Mixtral lie in its files one by one and in its modules as one 3-D
parameter. The plan is made as `from_pretrained` makes it, with transformers' own rules
(`get_model_conversion_mapping`), from names and shapes alone; a tensor is read, and merged, when it
is asked for.

Experts are wanted one by one (experts.py). Which file tensor becomes which expert is seen by
merging numbered tensors of one entry; where a file holds experts fused, each is a part of its
tensor.
"""

from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from q2n.errors import InputError
from q2n.models.expert_parts import ExpertPart, expert_total, is_fused, parts_by_parameter
from q2n.patterns import listed


@dataclass(eq=False)
class Merge:
    """Tensors of the files that transformers makes into others (one or several)."""

    rule: WeightConverter
    first: str
    """The model's name under which the rule is applied."""
    model: PreTrainedModel
    keys_of: dict[str, list[str]] = field(default_factory=dict)
    """Pattern of the rule -> names in the files, in transformers' order."""

    @property
    def keys(self) -> tuple[str, ...]:
        """Names in the files."""
        return tuple(key for keys in self.keys_of.values() for key in keys)

    def apply(
        self, tensor: Callable[[str], Shaped[Tensor, "..."]]
    ) -> dict[str, Shaped[Tensor, "..."]]:
        """The model's tensors, by name, from those of the files.

        Raises:
            Exception: whatever transformers raises on tensors that do not fit together.
        """
        rule = deepcopy(self.rule)
        for pattern, keys in self.keys_of.items():
            tensors: list[Any] = [tensor(key) for key in keys]  # theirs may be futures
            rule.collected_tensors[pattern] = tensors
        made = rule.convert(self.first, model=self.model, config=self.model.config)
        return {
            name: made[name][0] if isinstance(made[name], list) else made[name] for name in made
        }


@dataclass
class LoadingPlan:
    """What becomes of every tensor of the files."""

    key_of: dict[str, str] = field(default_factory=dict)
    """The model's name -> the file's, where the tensor is taken as it is."""
    merges: dict[str, Merge] = field(default_factory=dict)
    """The model's name of the first tensor -> what is merged."""
    parts: dict[str, tuple[str, ExpertPart]] = field(default_factory=dict)
    """The model's name of an expert's matrix -> the file's of the fused tensor that holds it, and
    where."""
    untaken: dict[str, str] = field(default_factory=dict)
    """Name in the files of what no module takes -> what the model would call it."""

    def state(self, tensors: Mapping[str, Shaped[Tensor, "..."]]) -> dict[str, Tensor]:
        """All of the model's tensors, by its names, from those of the files.

        Raises:
            Exception: as `Merge.apply`.
        """
        state = {name: tensors[key] for name, key in self.key_of.items()}
        for merge in self.merges.values():
            state |= merge.apply(tensors.__getitem__)
        return state


def conversion_rules(model: PreTrainedModel) -> tuple[list[WeightRenaming], list[WeightConverter]]:
    """transformers' rules for the tensors of a checkpoint, in its order: those that rename, and
    those that merge."""
    rules = get_model_conversion_mapping(model)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    return renamings, [rule for rule in rules if isinstance(rule, WeightConverter)]


def plan_loading(model: PreTrainedModel, keys: Iterable[str]) -> LoadingPlan:
    """The plan for a model (its weights may be on the meta device), as transformers builds it, and
    the names in the files. Experts go by the names of experts.py.

    Raises:
        InputError: the files hold more or fewer experts than the model.
    """
    renamings, converters = conversion_rules(model)
    rule_of = {pattern: rule for rule in converters for pattern in rule.source_patterns}
    state, prefix, plan = model.state_dict(), model.base_model_prefix, LoadingPlan()
    fused = fused_parts(model)
    single = {name for parts in fused.values() for name in parts}
    for key in sorted(keys, key=dot_natural_key):
        name, pattern = rename_source_key(key, renamings, converters, prefix, state)
        if name not in state and key in state:
            name, pattern = rename_source_key(key, [], [], prefix, state)
        if pattern is None and name in single:
            plan.key_of.setdefault(name, key)
        elif name not in state or name in (plan.merges if pattern is None else plan.key_of):
            plan.untaken[key] = name
        elif pattern is not None:
            merge = plan.merges.setdefault(name, Merge(rule_of[pattern], name, model))
            merge.keys_of.setdefault(pattern, []).append(key)
        elif plan.key_of.setdefault(name, key) != key:  # transformers takes the first
            plan.untaken[key] = name
    for name, parts in fused.items():
        _take_apart(plan, name, parts)
    return plan


def fused_parts(model: nn.Module) -> dict[str, dict[str, ExpertPart]]:
    """Name of a fused parameter -> the full names of the matrices in it, and where each lies."""
    return parts_by_parameter((n, m) for n, m in model.named_modules() if is_fused(m))


def _take_apart(plan: LoadingPlan, fused: str, parts: Mapping[str, ExpertPart]) -> None:
    """Replace what makes a fused parameter by what makes each matrix in it."""
    if fused in plan.key_of:
        key = plan.key_of.pop(fused)
        plan.parts |= {name: (key, part) for name, part in parts.items()}
    elif fused in plan.merges:
        merge = plan.merges[fused]
        numbers = {
            key: torch.full((1, 1), place, device="cpu") for place, key in enumerate(merge.keys)
        }
        try:
            made = merge.apply(numbers.__getitem__)[fused]
        except Exception:  # a damaged checkpoint: whoever merges real tensors names it
            return
        experts = expert_total(parts.values())
        if len(made) != experts:
            raise InputError(
                f"{fused!r} has {len(made)} experts in the files ({listed(merge.keys)}), and "
                f"config.json asks for {experts}; the two belong to different models"
            )
        plan.key_of |= {name: merge.keys[int(part.cut(made))] for name, part in parts.items()}
        del plan.merges[fused]


def merged_shapes(
    merge: Merge, shape: Callable[[str], tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    """Shapes of what a merge makes, by the model's names, from shapes alone.

    Raises:
        Exception: as `Merge.apply`.
    """
    made = merge.apply(lambda key: torch.empty(shape(key), device="meta"))
    return {name: tuple(tensor.shape) for name, tensor in made.items()}
