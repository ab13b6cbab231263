"""What everything else reads a model from: its original tensors, one by one, and its modules.

A source names tensors as the model's own modules do, so that nobody ever needs the whole model. A
checkpoint may name them otherwise, or keep in parts what the model holds as one tensor:
`source_key` and `merges` say so to whoever writes the model again.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path

import torch
from jaxtyping import Shaped
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from q2n.errors import NumericalError
from q2n.linalg.finite import all_finite
from q2n.models.expert_parts import ExpertPart
from q2n.models.ties import aliases
from q2n.transforms.runtime import RuntimeParts


class ModelSource(ABC):
    """Original tensors of a causal LM, by name."""

    label: str
    """What the user called the model."""
    config: PretrainedConfig
    dtype: torch.dtype
    """The dtype in which the model is run and written."""
    folder: Path | None = None
    """The checkpoint folder, if it comes from one."""
    only_config: bool = False
    """Whether nothing but its configuration is known: no tensor, no tokenizer."""
    trust_remote_code: bool = False
    """Whether code of the checkpoint may run, and travels with it."""
    runtime: RuntimeParts | None = None
    """What has to run beside the weights, if anything; `skeleton` has its rotations attached."""

    @abstractmethod
    def skeleton(self) -> PreTrainedModel:
        """The model's modules, the caller's to change, in evaluation mode, experts one by one
        (experts.py). Weights may lie on the meta device or be a user's own tensors: replace them,
        never write into them."""

    @abstractmethod
    def names(self) -> list[str]:
        """Names of all parameters and saved buffers; a tied tensor appears once."""

    @abstractmethod
    def tensor(self, name: str) -> Shaped[Tensor, "..."]:
        """One original tensor on the CPU, in its stored dtype: a copy, the caller's to change.

        Raises:
            InputError: it cannot be read.
        """

    def source_key(self, name: str) -> str:
        """What the checkpoint calls a tensor of `names`, or `save_pretrained` would of a model in
        memory; for a tensor that no checkpoint has, its own name."""
        return name

    def dtype_of(self, name: str) -> torch.dtype:
        """The dtype in which a floating-point tensor of `names` is run and written: `dtype`, or
        the wider one in which transformers keeps it."""
        return self.dtype

    @property
    def merges(self) -> Mapping[tuple[str, ...], tuple[str, ...]]:
        """Names in the checkpoint of tensors that the model holds in another form -> names of
        what they become."""
        return {}

    @property
    def fused(self) -> Mapping[str, Mapping[str, ExpertPart]]:
        """Names in the checkpoint of tensors that hold matrices of several experts -> the names of
        these matrices, and where each lies."""
        return {}

    @property
    def untaken(self) -> list[str]:
        """Names in the checkpoint of tensors that no module takes: layers that predict further
        tokens, another head."""
        return []

    def stored(self, key: str) -> Shaped[Tensor, "..."]:
        """A tensor of `merges` or `untaken` by its name in the checkpoint, as it is stored.

        Raises:
            InputError: it cannot be read.
        """
        raise KeyError(key)

    def stored_size(self, key: str) -> tuple[int, int]:
        """Entries and bytes of what `stored` reads, without reading it."""
        raise KeyError(key)

    @property
    def runs_parts(self) -> bool:
        """Whether the model of `skeleton` does more while it runs than the code of its class:
        rotates, or rounds inputs or the cache."""
        return self.runtime is not None

    @property
    def notes(self) -> list[str]:
        """What the model is otherwise than its configuration says, in sentences without a full
        stop."""
        return []

    def in_model_dtype(self, name: str) -> Shaped[Tensor, "..."]:
        """One tensor on the CPU as the model is run and written: floating-point numbers in
        `dtype_of` it, integers as they are.

        Raises:
            NumericalError: it is NaN or Inf in that dtype.
        """
        tensor = self.tensor(name)
        tensor = tensor.to(self.written_dtype(name, tensor))
        require_finite(f"{self.label}: tensor {name!r}", tensor)
        return tensor

    def written_dtype(self, name: str, tensor: Shaped[Tensor, "..."]) -> torch.dtype:
        """The dtype in which a tensor of `names` is run and written."""
        return self.dtype_of(name) if tensor.is_floating_point() else tensor.dtype

    @abstractmethod
    def digest(self) -> str:
        """SHA-256 of the configuration and every weight: what a resumed run must match.

        Raises:
            InputError: a weight cannot be read.
            NumericalError: one is NaN or Inf in the dtype of the run.
        """

    @abstractmethod
    def size_bytes(self) -> int:
        """Bytes of all tensors in the dtypes of the run."""

    @abstractmethod
    def save_auxiliary(self, directory: Path) -> None:
        """Write generation config and tokenizer, where there are any."""


def require_finite(what: str, numbers: Shaped[Tensor, "..."]) -> None:
    """Refuse NaN and Inf.

    Raises:
        NumericalError: there are some; the message begins with `what` has them.
    """
    if not all_finite(numbers):
        raise NumericalError(
            f"{what} has NaN or Inf in {numbers.dtype}; "
            "the checkpoint is damaged, or needs a wider --dtype"
        )


def config_bytes(config: PretrainedConfig) -> bytes:
    """The configuration without who wrote it and where it lay."""
    values = json.loads(config.to_json_string())
    for key in ("transformers_version", "_name_or_path"):
        values.pop(key, None)
    return json.dumps(values, sort_keys=True).encode()


def assemble(source: ModelSource, device: str | torch.device = "cpu") -> PreTrainedModel:
    """The source's model, its rotations attached, its activations and cache not rounded."""
    model = source.skeleton()
    state = {name: source.in_model_dtype(name) for name in source.names()}
    for name, others in aliases(model).items():
        state |= {other: state[name] for other in others if name in state and other not in state}
    model.load_state_dict(state, strict=False, assign=True)
    model.tie_weights()
    return model.to(device).eval().requires_grad_(False)  # type: ignore[arg-type]
