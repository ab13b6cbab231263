"""The native layout for vLLM: which of its linears hold what of the checkpoint.

vLLM fuses linears that read the same tensor: `qkv_proj` is what the checkpoint calls `q_proj`,
`k_proj` and `v_proj`. Each of them keeps its own representation here, or none.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
from vllm.model_executor.layers.quantization.base_config import (
    QuantizationConfig,
    QuantizeMethodBase,
)
from vllm.model_executor.layers.vocab_parallel_embedding import (
    ParallelLMHead,
    VocabParallelEmbedding,
)
from vllm.model_executor.models.utils import WeightsMapper

from q2n.errors import InputError
from q2n.formats.native_entry import COPIED, NativeEntry, described_layers
from q2n.formats.runtime import RUNTIME
from q2n.formats.stored import StoredLayer


class NativeConfig(QuantizationConfig):
    """`quantization_config` of config.json."""

    def __init__(self, layers: Mapping[str, StoredLayer], copied: Sequence[str]):
        super().__init__()
        self.layers, self.copied = dict(layers), copied
        self._has_tables = False  # until vLLM has asked for one

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "NativeConfig":
        """Raises:
        InputError: it is damaged, or the model must do more than multiply while it runs.
        """
        if config.get(RUNTIME):
            raise InputError(
                "this checkpoint rotates or rounds activations while it runs, which vLLM does not; "
                "use transformers, or quantize with --rotate-online false, and without "
                "--activation-bits and --kv-bits"
            )
        return cls(described_layers(config), config.get(COPIED, ()))

    def get_name(self) -> Any:
        return NativeEntry.quant_method

    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        return [torch.float32, torch.bfloat16, torch.float16]

    @classmethod
    def get_min_capability(cls) -> int:
        return 75

    @staticmethod
    def get_config_filenames() -> list[str]:
        return []

    def apply_vllm_mapper(self, hf_to_vllm_mapper: WeightsMapper) -> None:
        """Names of layers as vLLM's model has them."""
        self.layers = hf_to_vllm_mapper.apply_dict(self.layers)

    def get_checkpoint_weight_mapper(self) -> WeightsMapper:
        """Leaves out what the checkpoint carries along beside the model."""
        return WeightsMapper(orig_to_new_prefix=dict.fromkeys(self.copied))

    def get_quant_method(self, layer: nn.Module, prefix: str) -> QuantizeMethodBase | None:
        """Of a linear, an embedding or a head; everything else is as without quantization."""
        # Not before: they need numba, in whose modules the start of vLLM 0.32 on a CPU trips over
        # an object (llvmlite's `lib`) that answers for every attribute.
        from q2n.formats.vllm.linear import NativeLinear
        from q2n.formats.vllm.table import NativeTable, TiedHead

        if isinstance(layer, VocabParallelEmbedding):
            name = self._table(layer, prefix)
            if name is not None:
                self._has_tables = True
                return NativeTable(name, self.layers[name])
            # The writer packs an untied head too: one that is not described is the embedding.
            tied = self._has_tables and isinstance(layer, ParallelLMHead)
            return TiedHead() if tied else None
        if not isinstance(layer, LinearBase):
            return None
        names = self._names(prefix)
        if self.layers.keys().isdisjoint(names):
            return UnquantizedLinearMethod()
        return NativeLinear(prefix, {name: self.layers.get(name) for name in names})

    def _table(self, layer: VocabParallelEmbedding, prefix: str) -> str | None:
        """The table of the checkpoint. Some of vLLM's models do not say which one they mean: then
        it is that of the shape, beside the head."""
        if prefix:
            return prefix if prefix in self.layers else None
        shape = (layer.org_vocab_size, layer.embedding_dim)
        found = [name for name, stored in self.layers.items() if stored.shape == shape]
        return next((name for name in found if not name.endswith("lm_head")), None)

    def _names(self, prefix: str) -> list[str]:
        """The linears of the checkpoint that one of vLLM's is made of."""
        parent, _, own = prefix.rpartition(".")
        if prefix in self.layers:
            return [prefix]
        fused = self.packed_modules_mapping.get(own, [own])
        return [f"{parent}.{name}" if parent else name for name in fused]
