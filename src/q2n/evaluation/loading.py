"""A model by name with its tokenizer, or an object as it is, loaded when it is needed."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from q2n.data.tokenizer import load_tokenizer
from q2n.errors import InputError
from q2n.formats.load import load_model
from q2n.models.checkpoint_files import resolve_checkpoint
from q2n.models.devices import parse_device, requested_dtype


class MeasuredModel:
    """The model of a measurement."""

    def __init__(
        self,
        model: str | Path | PreTrainedModel,
        tokenizer: Any = None,
        *,
        device: str = "auto",
        dtype: str | None = "auto",
        trust_remote_code: bool = False,
    ):
        """
        Raises:
            InputError: there is no such model, device or dtype, or an object lacks its tokenizer.
        """
        self._dtype, self._device = requested_dtype(dtype), parse_device(device)
        self._model, self._tokenizer, self._trusted = model, tokenizer, trust_remote_code
        self.folder: Path | None = None
        """Of the checkpoint; None of an object."""
        if not isinstance(model, PreTrainedModel):
            self.folder = resolve_checkpoint(str(model), trust_remote_code=trust_remote_code)
        elif tokenizer is None:
            raise InputError("a model object comes without its tokenizer: give tokenizer=...")

    def load(self) -> tuple[PreTrainedModel, Any]:
        """Model and tokenizer.

        Raises:
            InputError: the checkpoint cannot be read or has no tokenizer.
        """
        if self._tokenizer is None:
            assert self.folder is not None
            self._tokenizer = load_tokenizer(self.folder, self._trusted)
        if not isinstance(self._model, PreTrainedModel):
            assert self.folder is not None
            self._model = load_model(
                self.folder, self._dtype, self._device, trust_remote_code=self._trusted
            )
        return self._model, self._tokenizer
