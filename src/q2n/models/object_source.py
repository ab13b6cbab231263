"""A model in memory as a source."""

import hashlib
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor
from transformers import PreTrainedModel

from q2n.errors import InputError
from q2n.models.auxiliary_files import generation_file, tokenizer_files
from q2n.models.devices import dtype_of_run
from q2n.models.dtypes import planned_dtypes
from q2n.models.expert_parts import ExpertPart
from q2n.models.experts import one_by_one
from q2n.models.model_source import ModelSource, config_bytes, require_finite
from q2n.models.skeleton import share_skeleton, stored_tensors
from q2n.models.tensor_names import saved_names
from q2n.models.ties import are_tied, declared_ties, set_tied


class ObjectSource(ModelSource):
    """A transformers model in memory; it is read, never changed. Its tokenizer, where one is
    given, travels with it.

    Raises:
        InputError: a weight is not in memory, or the tokenizer cannot be saved.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        dtype: str = "auto",
        trust_remote_code: bool = False,
        tokenizer: Any = None,
    ):
        self.model, self.config = model, model.config
        self.trust_remote_code = trust_remote_code
        self._auxiliary = generation_file(model.generation_config)
        self._auxiliary |= tokenizer_files(tokenizer, trust_remote_code)
        self.dtype = dtype_of_run(dtype, model.dtype)
        self.label = model.config.name_or_path or type(model).__name__
        self._tensors = dict(stored_tensors(one_by_one(share_skeleton(model))))
        for name, tensor in self._tensors.items():
            if tensor.is_meta:
                raise InputError(
                    f"{self.label}: weight {name!r} is not in memory (meta device, or offloaded); "
                    "load the whole model, or give its checkpoint folder instead"
                )

        self._tied = self._settle_ties()
        self._saved, self._fused = saved_names(model, dict(stored_tensors(model)))
        self._dtypes = planned_dtypes(model, self.dtype)
        if dtype == "auto":
            self._dtypes |= {
                name: tensor.dtype
                for name, tensor in self._tensors.items()
                if tensor.dtype.itemsize > self.dtype.itemsize
            }

    def skeleton(self) -> PreTrainedModel:
        model = one_by_one(share_skeleton(self.model))
        if self._tied is not None:
            set_tied(model.config, self._tied)
        return model

    def names(self) -> list[str]:
        return list(self._tensors)

    def tensor(self, name: str) -> Shaped[Tensor, "..."]:
        return self._tensors[name].detach().to("cpu", copy=True)

    def source_key(self, name: str) -> str:
        return self._saved.get(name, name)

    @property
    def fused(self) -> Mapping[str, Mapping[str, ExpertPart]]:
        return self._fused

    def dtype_of(self, name: str) -> torch.dtype:
        return self._dtypes.get(name, self.dtype)

    def digest(self) -> str:
        total = hashlib.sha256(config_bytes(self.config))
        for name, original in self._tensors.items():
            require_finite(
                f"{self.label}: tensor {name!r}",
                original.detach().to(self.written_dtype(name, original)),
            )
            total.update(f"{name} {original.dtype} {tuple(original.shape)}".encode())
            values = original.detach().cpu().contiguous().reshape(-1)
            total.update(values.view(torch.uint8).numpy().data)
        return total.hexdigest()

    @property
    def notes(self) -> list[str]:
        notes = [] if self.trust_remote_code else self._auxiliary.notes(self.config)
        if self._tied is None:
            return notes
        truth = "the same tensor" if self._tied else "tensors of their own"
        return [
            *notes,
            f"The head and the embeddings are {truth}, and the model's configuration says "
            "otherwise: the written config.json says tie_word_embeddings "
            f"{str(self._tied).lower()}",
        ]

    def size_bytes(self) -> int:
        return sum(
            tensor.numel() * self.written_dtype(name, tensor).itemsize
            for name, tensor in self._tensors.items()
        )

    def save_auxiliary(self, directory: Path) -> None:
        self._auxiliary.write(directory)

    def _settle_ties(self) -> bool | None:
        """Whether the head is the embeddings, where the configuration says otherwise; else None.
        Tied tensors have one name here, others each their own."""
        pairs = declared_ties(self.model)
        tied = are_tied(self.model, pairs)
        named = dict(self.model.named_parameters(remove_duplicate=False))
        if tied:
            for name, other in pairs:
                if named[name] is not named[other]:
                    self._tensors.pop(name, None)
        else:
            self._tensors |= {name: named[name] for pair in pairs for name in pair}
        says_tied = bool(self.model.get_expanded_tied_weights_keys(all_submodels=True))
        if not pairs or tied == says_tied:
            return None
        self.config = set_tied(deepcopy(self.config), tied)
        return tied
