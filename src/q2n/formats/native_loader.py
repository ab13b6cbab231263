"""The native layout for `AutoModelForCausalLM.from_pretrained`, by transformers' own hooks.

transformers looks `quant_method` up in two registries, of configuration classes and of
quantizers. The quantizer sees the model while its weights are still on the meta device, puts a
`PackedLinear` where config.json says that a linear is quantized, and lets transformers load: the
tensors of the file are that module's parameters, so loading in parts, `device_map`, offloading and
`save_pretrained` are transformers' own.

This module is imported while transformers itself is (registration.py): what needs a finished
transformers, or much time, is imported where it is used.
"""

from collections.abc import Iterable, Mapping
from copy import deepcopy
from typing import Any

from torch import nn
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from q2n.errors import InputError
from q2n.formats.native import require_parts
from q2n.formats.native_entry import NativeEntry, described_layers
from q2n.formats.packed_linear import PackedLinear
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

    def _process_model_before_weight_loading(
        self, model: nn.Module, checkpoint_files: Iterable[str] | None = None, **kwargs: Any
    ) -> None:
        layers = self.quantization_config.layers
        modules = dict(model.named_modules())
        for name, stored in layers.items():
            linear = modules.get(name)
            if not isinstance(linear, nn.Linear) or tuple(linear.weight.shape) != stored.shape:
                raise InputError(
                    f"{type(model).__name__} has no linear {name!r} of {stored.shape}, which the "
                    "checkpoint holds; load it with AutoModelForCausalLM"
                )
        if checkpoint_files is not None:
            _require_tensors(model, layers, checkpoint_files)
        for name, stored in layers.items():
            model.set_submodule(name, PackedLinear(stored, modules[name].bias))

    def _process_model_after_weight_loading(self, model: nn.Module, **kwargs: Any) -> None:
        for module in model.modules():
            if isinstance(module, PackedLinear):
                module.requires_grad_(False)  # the loader makes new parameters
        attach_runtime(model, self.quantization_config.entries.get(RUNTIME, {}))

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return False


def _require_tensors(model: Any, layers: Mapping[str, StoredLayer], files: Iterable[str]) -> None:
    """Refuse a damaged checkpoint: transformers gives a missing tensor any numbers."""
    from pathlib import Path

    from q2n.models.checkpoint_files import open_tensors
    from q2n.models.tensor_names import names_in_model

    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        opened = open_tensors(Path(file))
        shapes |= {key: tuple(opened.get_slice(key).get_shape()) for key in opened.keys()}
    names = names_in_model(model, shapes)
    shapes = {names[key]: shape for key, shape in shapes.items()}
    for name, stored in layers.items():
        require_parts(name, stored, {p: shapes.get(f"{name}.{p}") for p in stored.tensors})
