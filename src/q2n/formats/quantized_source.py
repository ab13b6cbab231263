"""A quantized checkpoint as a source of dense tensors, one by one.

So it is read as any model is: as a whole (load.py), or a block at a time where it does not fit.
"""

from pathlib import Path
from typing import Any

from transformers import PretrainedConfig, PreTrainedModel

from q2n.formats.codec import PackedCodec
from q2n.formats.hf_entry import PackedEntry, refuse_undescribed
from q2n.formats.packed_files import PackedFiles
from q2n.formats.runtime import attach_runtime
from q2n.models.checkpoint_files import StoredTensors
from q2n.models.config_file import quantization_config, read_config
from q2n.models.source import CheckpointSource


class QuantizedSource(CheckpointSource):
    """A folder that an entry of config.json describes. `skeleton` has everything attached that
    runs beside the weights.

    Raises:
        InputError: a file is missing, truncated or of an unknown variant.
    """

    def __init__(
        self,
        folder: Path,
        entry: PackedEntry[Any],
        codec: PackedCodec[Any],
        dtype: str,
        trust_remote_code: bool = False,
    ):
        self._entry, self._codec = entry, codec
        self._quantization = quantization_config(folder) or {}
        super().__init__(folder, str(folder), dtype, trust_remote_code)
        unused = entry.unused(self._quantization)
        if unused is not None and (undescribed := set(self.untaken) - unused):
            refuse_undescribed(min(undescribed))

    def skeleton(self) -> PreTrainedModel:
        model = super().skeleton()
        attach_runtime(model, self._runtime)
        return model

    @property
    def runs_parts(self) -> bool:
        return bool(self._runtime)

    @property
    def _runtime(self) -> Any:
        assert isinstance(self._files, PackedFiles)
        return self._entry.runtime(self._quantization, self._files.packed)

    def _read_config(self) -> PretrainedConfig:
        config = read_config(self.folder, self.trust_remote_code)
        del config.quantization_config
        return config

    def _dense(self, files: StoredTensors, model: PreTrainedModel) -> PackedFiles:
        return PackedFiles(files, model, self.dtype, self._entry, self._codec, self._quantization)
