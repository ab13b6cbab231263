"""A checkpoint folder with a GGUF file as a source of dense tensors."""

from pathlib import Path

from transformers import PretrainedConfig, PreTrainedModel

from q2n.formats.gguf.architecture import architecture_of
from q2n.formats.gguf.supported import require_supported
from q2n.formats.gguf.tensors import GGUFTensors, ModelTensors
from q2n.models.checkpoint_files import StoredTensors
from q2n.models.config_file import read_config
from q2n.models.source import CheckpointSource


class GGUFSource(CheckpointSource):
    """config.json and the tokenizer are read as those of any folder.

    Raises:
        InputError: the file is missing, cut short, or that of another model.
    """

    def __init__(self, folder: Path, dtype: str, trust_remote_code: bool = False):
        super().__init__(folder, str(folder), dtype, trust_remote_code)

    def _read_config(self) -> PretrainedConfig:
        config = read_config(self.folder, self.trust_remote_code)
        self._architecture = architecture_of(config)
        require_supported(self._architecture, config)
        return config

    def _open_files(self) -> StoredTensors:
        return GGUFTensors(self.folder)

    def _dense(self, files: StoredTensors, model: PreTrainedModel) -> StoredTensors:
        assert isinstance(files, GGUFTensors)
        return ModelTensors(files, self._architecture, model)
