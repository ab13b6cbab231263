"""A model of which only config.json is read: its modules and shapes, and no tensor."""

from pathlib import Path

import torch
from jaxtyping import Shaped
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from q2n.errors import InputError
from q2n.models.checkpoint_files import resolve_checkpoint
from q2n.models.devices import DTYPES, dtype_of_run, parse_dtype
from q2n.models.dtypes import loaded_dtypes
from q2n.models.experts import one_by_one
from q2n.models.model_source import ModelSource
from q2n.models.published import original_config
from q2n.models.skeleton import build_skeleton, stored_tensors


class ConfigSource(ModelSource):
    """A configuration as a source, for what asks for shapes only.

    Raises:
        InputError: no causal language model can be built from it.
    """

    only_config = True

    def __init__(
        self, config: PretrainedConfig, label: str, dtype: str, trust_remote_code: bool = False
    ):
        self.config, self.label, self.trust_remote_code = config, label, trust_remote_code
        own = str(config.dtype).removeprefix("torch.")
        self.dtype = (
            dtype_of_run(dtype, DTYPES.get(own, torch.float32))
            if dtype in ("auto", "half")
            else parse_dtype(dtype)
        )
        model = self.skeleton()
        self._own = dict(stored_tensors(model))
        self._dtypes = loaded_dtypes(model, self.dtype)

    @classmethod
    def open(
        cls, model: str, dtype: str, *, revision: str | None = None, trust_remote_code: bool = False
    ) -> "ConfigSource":
        """The configuration of a folder, which need hold nothing else, of a packaged model or of
        one on the hub.

        Raises:
            InputError: there is none, or none of a causal language model.
        """
        folder = resolve_checkpoint(
            model, revision, trust_remote_code=trust_remote_code, weights=False
        )
        return cls(original_config(folder, trust_remote_code), model, dtype, trust_remote_code)

    def skeleton(self) -> PreTrainedModel:
        return one_by_one(build_skeleton(self.config, self.dtype, self.trust_remote_code))

    def names(self) -> list[str]:
        return list(self._own)

    def tensor(self, name: str) -> Shaped[Tensor, "..."]:
        raise InputError(f"{self.label}: only its configuration was opened, not {name!r}")

    def dtype_of(self, name: str) -> torch.dtype:
        return self._dtypes.get(name, self.dtype)

    def digest(self) -> str:
        raise InputError(f"{self.label}: only its configuration was opened, no weight")

    def size_bytes(self) -> int:
        return sum(
            tensor.numel() * self.written_dtype(name, tensor).itemsize
            for name, tensor in self._own.items()
        )

    def save_auxiliary(self, directory: Path) -> None:
        """There is nothing to write."""
