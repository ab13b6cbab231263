"""compressed-tensors, `pack-quantized`: what vLLM and transformers read.

For a weight [N, K] with G groups of inputs and b bits:

    weight_packed      int32 [N, ceil(K b / 32)]   codes, packed along K
    weight_scale       [N, G], model dtype (float16 in a float32 model)
    weight_zero_point  int32 [ceil(N b / 32), G]   asymmetric only, packed along N
    weight_shape       int64 [2]

The library thinks in signed codes and stores them with 2^(b-1) added: our unsigned codes
and zero points are what it stores. Layout as in compressed-tensors 0.18 and later; older
readers put 3-bit fields elsewhere. Linears that round their inputs: compressed_tensors_inputs.py.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from transformers import PreTrainedModel

from q2n.errors import InputError
from q2n.formats.compressed_tensors_inputs import PER_TOKEN, described_inputs
from q2n.formats.hf_entry import modules_of, others
from q2n.formats.packing import pack, unpack, word_count
from q2n.formats.runtime import PARTS
from q2n.formats.stored import StoredLayer
from q2n.formats.uniform import (
    Scheme,
    UniformCodec,
    UniformEntry,
    require_tensors,
    stored_scale,
)
from q2n.layers.quantized import QuantizedLinear, StorageSpec
from q2n.layers.uniform import UniformStorage
from q2n.linalg.groups import by_column
from q2n.models.initialization import modules_that_set
from q2n.option_types import shown
from q2n.transforms.runtime import RuntimeParts

LAYOUT_VERSION = "0.20.0"
"""The compressed-tensors release against which the layout is tested; written into the file."""

DENSE_ON_LOADING = {"dequantize": True}
"""An argument of transformers' `CompressedTensorsConfig`, which takes it from the file too. Without
it transformers makes room for the zero points of another shape than they are stored in, and a plain
`from_pretrained` of an asymmetric checkpoint fails; nor can it load a model whose initialization
looks for the weights (models/initialization.py). With it, or after the first call without it,
the model is dense in memory. It knows one group of layers (5.23): those that differ in width are
symmetric. vLLM does not read it."""


SYMMETRIC_IF_MIXED = (
    "transformers loads compressed-tensors layers that differ in width on symmetric grids only; "
    "add --symmetric, or use --format native or dequantized"
)


class CompressedTensors(UniformCodec):
    """Codes as one bitstream per row."""

    holds_mixed = True
    name = "compressed-tensors"
    parts = ("weight_packed", "weight_scale", "weight_zero_point", "weight_shape")

    def check_grid(self, name: str, shape: tuple[int, int], *, bits: int, group_size: int) -> None:
        if not 2 <= bits <= 8:
            raise InputError(f"{self.name} holds 2 to 8 bits, not {bits} ({name})")
        if group_size > 0 and shape[1] % group_size:
            raise InputError(
                f"{self.name} has no short last group: {name} has {shape[1]} inputs, which groups "
                f"of {group_size} do not divide; choose a divisor, or -1 for one group per row"
            )

    def check(self, name: str, shape: tuple[int, int], storage: StorageSpec) -> None:
        super().check(name, shape, storage)
        if storage.mixed and isinstance(storage, UniformStorage) and not storage.symmetric:
            raise InputError(SYMMETRIC_IF_MIXED)

    def encode(
        self, name: str, layer: QuantizedLinear, dtype: torch.dtype
    ) -> dict[str, Shaped[Tensor, "..."]]:
        uniform = self.uniform(name, layer)
        stored = {
            "weight_packed": pack(uniform.codes, uniform.bits),
            "weight_scale": stored_scale(name, uniform.scale, self.scale_dtype(dtype)),
            "weight_shape": torch.tensor(uniform.shape, dtype=torch.int64),
        }
        if not uniform.symmetric:
            zero = pack(uniform.zero.T.contiguous(), uniform.bits)
            stored["weight_zero_point"] = zero.T.contiguous()
        return stored

    def decode(
        self, name: str, parts: Mapping[str, Shaped[Tensor, "..."]], description: Scheme
    ) -> Float[Tensor, "out in"]:
        bits = description.bits
        rows, columns = _shape(name, parts)
        groups = description.groups(columns)
        expected: dict[str, tuple[tuple[int, ...], bool]] = {
            "weight_packed": ((rows, word_count(columns, bits)), False),
            "weight_scale": ((rows, groups), True),
        }
        if not description.symmetric:
            expected["weight_zero_point"] = ((word_count(rows, bits), groups), False)
        require_tensors(name, parts, expected)
        codes = unpack(parts["weight_packed"], bits, columns)
        scale = parts["weight_scale"].float()
        zero = torch.full_like(scale, 2 ** (bits - 1))
        if not description.symmetric:
            packed = parts["weight_zero_point"].T.contiguous()
            zero = unpack(packed, bits, rows).T.float()
        group_size = columns if description.group_size == -1 else description.group_size
        centred = codes.float() - by_column(zero, group_size, columns)
        return by_column(scale, group_size, columns) * centred


def _shape(name: str, parts: Mapping[str, Shaped[Tensor, "..."]]) -> tuple[int, int]:
    """The shape of the weight, as the file says it."""
    stored = parts.get("weight_shape")
    sizes = [] if stored is None or stored.is_floating_point() else stored.flatten()[:3].tolist()
    if len(sizes) != 2 or not all(0 < size < 2**31 for size in sizes):
        raise InputError(
            f"tensor {name}.weight_shape is missing or no shape of a matrix: {sizes}; fetch the "
            "checkpoint again"
        )
    return sizes[0], sizes[1]


def _named(layers: Collection[str], modules: Mapping[str, str]) -> list[str]:
    """Targets of a group by the names of its layers, in the model and in the files."""
    return list(dict.fromkeys(name for x in layers for name in (x, modules.get(x, x))))


def _is_named(targets: Any) -> bool:
    """Whether the targets of a group are names of layers: neither classes nor patterns."""
    return isinstance(targets, list) and all(
        isinstance(x, str) and x != "Linear" and not x.startswith("re:") for x in targets
    )


def _scheme(group: Mapping[str, Any]) -> Scheme:
    weights = group["weights"]
    if not isinstance(weights, dict):
        raise InputError(f"the weights of this group are {shown(weights)}; fetch config.json again")
    return Scheme(
        bits=weights["num_bits"],
        group_size=weights.get("group_size") or -1,
        symmetric=weights["symmetric"],
    )


def _towers(layers: Mapping[str, StoredLayer], modules: Mapping[str, str]) -> list[str]:
    """Patterns of the outermost modules that hold linears and no quantized one, by their own last
    names. Readers match `ignore` with names in the model, in the file, or with names of their own;
    a vision tower that one of them takes for packed is never loaded, and no text shows it."""
    around = {name[:dot] for name in layers for dot in _dots(name)}
    own = {name[:dot] for name in others(layers, modules) for dot in _dots(name)} - around
    outermost = [name for name in sorted(own) if name.rpartition(".")[0] in {*around, ""}]
    lasts = dict.fromkeys(name.rpartition(".")[2] for name in outermost)
    quantized = [*layers, *(modules[name] for name in layers)]
    return [
        f"re:.*{re.escape(last)}.*"
        for last in lasts
        if not last.isdigit() and not any(last in name for name in quantized)
    ]


def _dots(name: str) -> list[int]:
    return [place for place, letter in enumerate(name) if letter == "."]


class CompressedTensorsEntry(UniformEntry):
    """A group of layers for each scheme; with `rounds_inputs` each of them rounds its inputs."""

    codec: ClassVar[type[UniformCodec]] = CompressedTensors
    layout: ClassVar[str] = "pack-quantized"
    """As its readers call it."""
    quant_method = "compressed-tensors"
    merges_parts = False  # transformers 5.23 takes all parts for packed and finds none
    single_experts = "as files"
    merges_experts = False

    def __init__(self, *, rounds_inputs: bool = False):
        self.rounds_inputs = rounds_inputs

    def check_experts(
        self, fused: Sequence[str], storage: StorageSpec, left: Sequence[str]
    ) -> None:
        if left:
            raise InputError(
                "readers of compressed-tensors load the experts of a mixture packed or dense, all "
                f"alike, and {left[0]} would stay as it is; use --format native or dequantized, or "
                "leave all of them out with --ignore '*experts*'"
            )
        if fused:
            raise InputError(
                f"the model keeps its experts fused ({fused[0]}), and readers of "
                "compressed-tensors load packed experts one by one; use --format native or "
                "dequantized, or --ignore '*experts*'"
            )
        if isinstance(storage, UniformStorage) and not storage.symmetric:
            raise InputError(
                "transformers and vLLM load packed experts in compressed-tensors with symmetric "
                "grids only; add --symmetric, or use --format native or dequantized"
            )

    def quantization_config(
        self,
        layers: Mapping[str, StoredLayer],
        modules: Mapping[str, str],
        copied: Sequence[str] = (),
    ) -> dict[str, Any]:
        schemes, left = self.schemes(layers), others(layers, modules)
        names = [*left, *left.values()]
        groups = {
            # readers try the class before the names of what they fuse: no class if there are names
            f"group_{number}": self._group(
                scheme, ["Linear"] if len(schemes) == 1 else _named(own, modules)
            )
            for number, (scheme, own) in enumerate(schemes.items())
        }
        symmetric = all(scheme.symmetric for scheme in schemes)
        if len(schemes) > 1 and not symmetric:
            raise InputError(SYMMETRIC_IF_MIXED)
        return {
            "quant_method": self.quant_method,
            "version": LAYOUT_VERSION,
            "format": self.layout,
            "quantization_status": "compressed",
            "config_groups": groups,
            "ignore": list(dict.fromkeys([*names, *_towers(layers, modules), *modules_of(copied)])),
            **({} if symmetric else DENSE_ON_LOADING),
        }

    def _group(self, scheme: Scheme, targets: list[str]) -> dict[str, Any]:
        weights: dict[str, Any] = {
            "num_bits": scheme.bits,
            "type": "int",
            "symmetric": scheme.symmetric,
            "dynamic": False,
            "strategy": "channel",
        }
        if scheme.group_size > 0:
            weights |= {"strategy": "group", "group_size": scheme.group_size}
        return {
            "targets": targets,
            "format": self.layout,
            "weights": weights,
            "input_activations": dict(PER_TOKEN) if self.rounds_inputs else None,
            "output_activations": None,
        }

    def fitted(
        self, quantization: dict[str, Any], model: nn.Module, layers: Collection[str]
    ) -> dict[str, Any]:
        """Compressed modules have no weight, and the initialization of some looks for it.

        Raises:
            InputError: then layers that differ in width cannot be loaded.
        """
        assert isinstance(model, PreTrainedModel)
        if not modules_that_set(model, layers):
            return quantization
        if len(quantization["config_groups"]) > 1:
            raise InputError(
                f"transformers loads layers of {type(model).__name__} in compressed-tensors only "
                "if all have one width; use --format native or dequantized"
            )
        return {**quantization, **DENSE_ON_LOADING}

    def described_scheme(self, config: Mapping[str, Any]) -> Scheme:
        groups = list(config.get("config_groups", {}).values())
        named = all(isinstance(x, dict) and _is_named(x.get("targets")) for x in groups)
        if config.get("format") != self.layout or not (len(groups) == 1 or groups and named):
            raise InputError(
                f"this compressed-tensors checkpoint is neither one {self.layout} group of layers "
                f"nor several whose targets are names of layers (format {config.get('format')!r}, "
                f"{len(groups)} groups); load it with transformers"
            )
        return _scheme(groups[0])

    def own_scheme(self, module: str, config: Mapping[str, Any]) -> Scheme | None:
        groups = list(config["config_groups"].values())
        if len(groups) == 1:
            return None
        own = next((group for group in groups if module in group["targets"]), None)
        if own is None:
            raise InputError(
                f"no group of config.json has {module} among its targets; fetch it again"
            )
        return _scheme(own)

    def described_runtime(self, parts: Mapping[str, Any]) -> dict[str, Any]:
        """Nothing: rounded inputs, all that there can be, stand in the group."""
        return {}

    def runtime(self, quantization: Mapping[str, Any], packed: Collection[str]) -> Any:
        groups = list(quantization["config_groups"].values())
        grid = described_inputs(groups[0].get("input_activations"))
        if grid is None:
            return {}
        return {PARTS: RuntimeParts(rounded=tuple(packed), activations=grid).to_json()}

    def loading_example(self, directory: Path) -> str:
        return (
            "# pip install transformers compressed-tensors\n"
            "from transformers import AutoModelForCausalLM\n"
            "\n"
            f"model = AutoModelForCausalLM.from_pretrained({str(directory)!r})\n"
        )
