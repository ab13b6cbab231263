"""The tensors of a model that lie in checkpoint files, by the names of the model's modules.

What the files hold is checked against the model from headers alone: every tensor that the model
needs is there, in its shape and in floating-point numbers; there are no more layers than the model
has. What no module takes is listed.
"""

import re
from collections.abc import Iterator
from functools import cached_property

import torch
from jaxtyping import Shaped
from torch import Tensor, nn
from transformers import PreTrainedModel

from q2n.errors import InputError
from q2n.models.checkpoint_files import StoredTensors
from q2n.models.expert_parts import ExpertPart
from q2n.models.experts import one_by_one
from q2n.models.loading_plan import Merge, merged_shapes, plan_loading
from q2n.models.skeleton import stored_tensors
from q2n.models.ties import aliases
from q2n.patterns import listed

FLOATING = ("F64", "F32", "F16", "BF16")
"""Dtypes of which a model can be made, as safetensors calls them."""


class CheckpointTensors:
    """The tensors of `model`, whose weights may be on the meta device, in `files`. The model is as
    transformers builds it; its experts are taken apart.

    Raises:
        InputError: the files are those of another model, or cannot be read as one.
    """

    def __init__(self, files: StoredTensors, model: PreTrainedModel):
        self.files, self.model = files, model
        self._plan = plan_loading(model, files.file_of)
        one_by_one(model)
        self._aliases = aliases(model)
        self._made: tuple[Merge, dict[str, Tensor]] | None = None
        self._require_no_more_layers()
        self._shapes = {name: files.shape(key) for name, key in self._plan.key_of.items()}
        self._shapes |= {name: self._part_shape(name) for name in self._plan.parts}
        self._merge_of = dict(self._checked_merges())
        for name, tensor in stored_tensors(model):
            self._check(name, tensor)

    @property
    def untaken(self) -> list[str]:
        """Names in the files of what no module takes."""
        return list(self._plan.untaken)

    @property
    def merges(self) -> dict[tuple[str, ...], tuple[str, ...]]:
        """Names in the files of what transformers merges on loading -> the model's of what comes
        of it."""
        made: dict[Merge, list[str]] = {}
        for name, merge in self._merge_of.items():
            made.setdefault(merge, []).append(name)
        return {merge.keys: tuple(names) for merge, names in made.items()}

    @cached_property
    def fused(self) -> dict[str, dict[str, ExpertPart]]:
        """Names in the files of tensors that hold matrices of several experts -> the model's of
        these matrices, and where each lies."""
        fused: dict[str, dict[str, ExpertPart]] = {}
        for name, (key, part) in self._plan.parts.items():
            fused.setdefault(key, {})[name] = part
        return fused

    def keys(self, name: str) -> tuple[str, ...]:
        """Names in the files of what makes a tensor; none if they do not hold it."""
        own = self._stored_name(name)
        if own in self._merge_of:
            return self._merge_of[own].keys
        if own in self._plan.parts:
            return (self._plan.parts[own][0],)
        return (self._plan.key_of[own],) if own is not None else ()

    def tensor(self, name: str) -> Shaped[Tensor, "..."]:
        """One of the model's tensors in its stored dtype, as transformers loads it.

        Raises:
            InputError: it cannot be read.
        """
        own = self._stored_name(name)
        assert own is not None, name
        if own in self._plan.parts:
            key, part = self._plan.parts[own]
            return part.within(self.files.entry(key, part.expert)).contiguous()
        merge = self._merge_of.get(own)
        return self.files.tensor(self._plan.key_of[own]) if merge is None else self._pop(merge, own)

    def differing_ties(self, dtype: torch.dtype) -> list[str]:
        """Tensors that the model ties to others and that the files store with other values, as
        transformers compares them: in the dtype of the model."""
        tied = self.model.get_expanded_tied_weights_keys(all_submodels=True)
        both = {a: b for a, b in tied.items() if self._has(a) and self._has(b)}
        return [
            a
            for a, b in both.items()
            if not torch.equal(self.tensor(a).to(dtype), self.tensor(b).to(dtype))
        ]

    def _has(self, name: str) -> bool:
        return any(name in x for x in (self._plan.key_of, self._merge_of, self._plan.parts))

    def _part_shape(self, name: str) -> tuple[int, ...]:
        key, part = self._plan.parts[name]
        return tuple(part.cut(torch.empty(self.files.shape(key), device="meta")).shape)

    def _stored_name(self, name: str) -> str | None:
        """The first name of a tensor that the files hold: its own, or of one tied to it."""
        return next(filter(self._has, [name, *self._aliases.get(name, ())]), None)

    def _pop(self, merge: Merge, name: str) -> Shaped[Tensor, "..."]:
        """What a merge makes is kept until it is handed out: some make several tensors."""
        if self._made is None or self._made[0] is not merge or name not in self._made[1]:
            self._made = (merge, merge.apply(self.files.tensor))
        return self._made[1].pop(name)

    def _checked_merges(self) -> Iterator[tuple[str, Merge]]:
        for merge in self._plan.merges.values():
            for key in merge.keys:
                self._require_floating(key)
            try:
                shapes = merged_shapes(merge, self.files.shape)
            except Exception as cause:  # whatever torch and transformers raise
                raise InputError(
                    f"{self.files.folder}: transformers cannot make {merge.first!r} of "
                    f"{type(self.model).__name__} from {listed(merge.keys)}: {cause}"
                ) from cause
            self._shapes |= shapes
            yield from ((name, merge) for name in shapes)

    def _check(self, name: str, expected: Shaped[Tensor, "..."]) -> None:
        own = self._stored_name(name)
        if own is None:
            raise InputError(self._missing(name))
        keys = self.keys(name)
        if expected.is_floating_point():
            self._require_floating(keys[0])
        if self._shapes[own] != tuple(expected.shape):
            raise InputError(
                f"{self.files.file_of[keys[0]]}: tensor {listed(keys)} has shape "
                f"{self._shapes[own]}, and config.json asks for {tuple(expected.shape)}; "
                "the two belong to different models"
            )

    def _require_floating(self, key: str) -> None:
        dtype = self.files.dtype(key)
        if dtype not in FLOATING:
            raise InputError(
                f"{self.files.file_of[key]}: tensor {key!r} is stored as {dtype}, and a weight is "
                f"one of {', '.join(FLOATING)}; if the checkpoint is quantized already, take the "
                "original"
            )

    def _missing(self, name: str) -> str:
        """Why the files hold no tensor of this name."""
        kind = type(self.model).__name__
        declared = (self.model.config.architectures or [kind])[0]
        head = self.model.get_output_embeddings()
        if declared != kind and head is not None and self.model.get_submodule(_of(name)) is head:
            return (
                f"{self.files.folder}: config.json says that this is a {declared}, and its files "
                f"hold no {name!r}; it is no causal language model ({kind}), and only those are "
                "quantized"
            )
        others = f"; they hold {listed(self.untaken)}, which it lacks" if self.untaken else ""
        return (
            f"{self.files.folder}: the checkpoint has no tensor {name!r}, which {kind} needs"
            f"{others}; config.json and the files must be of one model, and none may be missing"
        )

    def _require_no_more_layers(self) -> None:
        """More layers than the model has are those of another model, unless they are known to
        predict further tokens (`num_nextn_predict_layers`) or transformers passes them over."""
        lists = {n: len(m) for n, m in self.model.named_modules() if isinstance(m, nn.ModuleList)}
        ignored = self.model._keys_to_ignore_on_load_unexpected or ()
        for key, name in self._plan.untaken.items():
            for entry in re.finditer(r"\.(\d+)\.", name):
                count, number = lists.get(name[: entry.start()]), int(entry[1])
                if count is None or number < count + _predicting_layers(self.model):
                    continue
                if not any(re.search(pattern, name) for pattern in ignored):
                    raise InputError(
                        f"{self.files.file_of[key]}: tensor {key!r} is of layer {number} (from 0), "
                        f"and with config.json {name[: entry.start()]!r} has {count}; correct the "
                        "number of layers, or take the files that belong to config.json"
                    )


def _predicting_layers(model: PreTrainedModel) -> int:
    """Layers behind the last one that predict further tokens; no module takes them."""
    config = model.config.get_text_config()
    names = ("num_nextn_predict_layers", "num_mtp_layers", "mtp_num_hidden_layers")
    return max(getattr(config, name, None) or 0 for name in names)


def _of(name: str) -> str:
    """The module of a tensor."""
    return name.rpartition(".")[0]
