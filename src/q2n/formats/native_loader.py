"""The native layout for `AutoModelForCausalLM.from_pretrained`, by transformers' own hooks.

transformers looks `quant_method` up in two registries, of configuration classes and of
quantizers. The quantizer sees the model while its weights are still on the meta device, puts packed
modules where config.json says so (packed_modules.py), and lets transformers load: the tensors of
the file are those modules' parameters, so loading in parts, `device_map`, offloading and
`save_pretrained` are transformers' own.

This module is imported while transformers itself is (registration.py): what needs a finished
transformers, or much time, is imported where it is used.
"""

from collections.abc import Collection, Iterable, Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import nn
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from q2n.formats.hf_entry import refuse_undescribed
from q2n.formats.native import require_numbers, require_parts
from q2n.formats.native_entry import COPIED, NativeEntry, described_layers
from q2n.formats.runtime import RUNTIME, attach_runtime
from q2n.formats.stored import StoredLayer


@register_quantization_config(NativeEntry.quant_method)
class NativeConfig(QuantizationConfigMixin):
    """`quantization_config` of config.json as it is; its attributes are its entries."""

    def __init__(self, **entries: Any):
        self.layers = described_layers(entries)
        self.entries = entries
        self.quant_method = NativeEntry.quant_method  # type: ignore[assignment] # theirs is an Enum

    def to_dict(self) -> dict[str, Any]:
        return deepcopy(self.entries)


@register_quantizer(NativeEntry.quant_method)
class NativeQuantizer(HfQuantizer):
    """Puts packed linears into a model before it is loaded."""

    requires_calibration = True
    quantization_config: NativeConfig
    _apart: Collection[str] = ()
    """Fused parameters in whose place experts are one by one."""

    def _process_model_before_weight_loading(
        self, model: nn.Module, checkpoint_files: Iterable[str] | None = None, **kwargs: Any
    ) -> None:
        from transformers import PreTrainedModel

        from q2n.formats.packed_modules import pack_modules, require_modules, take_experts_apart
        from q2n.models.initialization import modules_that_set
        from q2n.models.tensor_names import names_in_model

        layers, headers = self.quantization_config.layers, _headers(checkpoint_files or ())
        assert isinstance(model, PreTrainedModel)
        names = names_in_model(model, headers)  # while the model has its plain modules
        self._apart = take_experts_apart(model, layers)
        require_modules(model, layers)
        if checkpoint_files is not None:
            _require_tensors(layers, {names[key]: header for key, header in headers.items()})
        setting = modules_that_set(model, layers)
        pack_modules(model, layers)
        for name in setting:  # they look for weights, and all that they hold is in the files
            model.get_submodule(name)._is_hf_initialized = True  # type: ignore[assignment]
        placed = {*model.state_dict(), *self.quantization_config.entries.get(COPIED, [])}
        for key, name in names.items():
            if placed.isdisjoint((key, name)):
                refuse_undescribed(key)

    def update_weight_conversions(
        self, weight_conversions: list[Any], model: nn.Module
    ) -> list[Any]:
        """Without those that would merge experts that are packed one by one."""
        return [
            rule
            for rule in super().update_weight_conversions(weight_conversions, model)
            if not any(
                fused.endswith(target.removeprefix("."))
                for target in getattr(rule, "operations", ()) and rule.target_patterns
                for fused in self._apart
            )
        ]

    def _process_model_after_weight_loading(self, model: nn.Module, **kwargs: Any) -> None:
        from q2n.formats.packed_embedding import PackedEmbedding
        from q2n.formats.packed_linear import PackedLinear

        for module in model.modules():
            if isinstance(module, PackedLinear | PackedEmbedding):
                module.requires_grad_(False)  # the loader makes new parameters
        for name, layer in self.quantization_config.layers.items():
            parts = dict(model.get_submodule(name).named_parameters(recurse=False))
            if not any(part.is_meta for part in parts.values()):  # else they are on the disk
                require_numbers(name, layer, parts)
        attach_runtime(model, self.quantization_config.entries.get(RUNTIME, {}))

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return False


def _headers(
    files: Iterable[str],
) -> dict[str, tuple[tuple[int, ...], torch.dtype | None]]:
    """Shape and dtype of every tensor in the files."""
    from pathlib import Path

    from q2n.models.tensor_file import DTYPES, read_places

    return {
        key: (place.shape, DTYPES.get(place.dtype))
        for file in files
        for key, place in read_places(Path(file)).items()
    }


def _require_tensors(
    layers: Mapping[str, StoredLayer],
    headers: Mapping[str, tuple[tuple[int, ...], torch.dtype | None]],
) -> None:
    """Refuse a damaged checkpoint: transformers gives a missing tensor any numbers. The headers go
    by the model's names."""
    for name, stored in layers.items():
        there = {p: headers[f"{name}.{p}"] for p in stored.tensors if f"{name}.{p}" in headers}
        require_parts(name, stored, there)
