"""What config.json of a Hugging Face folder says of a codec's layers, and back.

Readers choose how to load a checkpoint by `quantization_config`. It describes the layers, names
those that are not quantized, and is all that tells a reader which tensors are packed.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, NoReturn

import torch
from torch import nn

from q2n.errors import InputError
from q2n.formats.codec import Description
from q2n.formats.runtime import PARTS, RUNTIME
from q2n.formats.stored import StoredLayer
from q2n.formats.table_grid import TableGrid
from q2n.layers.quantized import StorageSpec
from q2n.option_types import shown


class FolderEntry(ABC):
    """How readers of a Hugging Face folder are told of a codec."""

    quant_method: ClassVar[str | None] = None
    """What readers find in config.json; None for a plain checkpoint."""
    config_copy: ClassVar[str | None] = None
    """A second file, beside config.json, in which readers look for the quantization config."""

    library: ClassVar[str] = "transformers"
    """Which library loads it, as model hubs call it."""

    merges_parts: ClassVar[bool] = True
    """Whether its readers merge tensors on loading as transformers does with a plain checkpoint."""
    merges_experts: ClassVar[bool] = True
    """Whether they do so with dense experts that are stored one by one."""

    single_experts: ClassVar[Literal["as files", "as model", "no"]] = "no"
    """What single experts are called in the files: as those of the original are, as the model calls
    them (models/experts.py), or its readers know none."""

    def check_experts(
        self, fused: Sequence[str], storage: StorageSpec, left: Sequence[str]
    ) -> None:
        """Refuse, before any work is done, to quantize experts that its readers would not load.

        Args:
            fused: tensors of the original's files that hold several experts.
            left: linears of experts that stay as they are in mixtures of which others do not.

        Raises:
            InputError: with the reason, and what would do.
        """
        if self.single_experts == "no":
            raise InputError(
                f"{self.quant_method} has no place for the experts of a mixture here; use --format "
                "native, compressed-tensors, dequantized or gguf, or leave them in full precision "
                "with --ignore '*experts*'"
            )

    @abstractmethod
    def quantization_config(
        self,
        layers: Mapping[str, StoredLayer],
        modules: Mapping[str, str],
        copied: Sequence[str] = (),
    ) -> dict[str, Any] | None:
        """`quantization_config` of config.json; None for a plain checkpoint.

        `layers` go by their names in the model, as transformers knows them. `modules` are all
        linears and tables, also those that are not quantized: name in the model -> name in the
        files, which other readers know. `copied` are tensors that are none of the model's own.

        Raises:
            InputError: the entry cannot describe this mixture of layers.
        """

    outside_bits: ClassVar[tuple[int, ...]] = ()
    """Widths in which its readers know embeddings and head; none unless an entry says more."""

    def check_table(self, name: str, shape: tuple[int, int], grid: TableGrid) -> None:  # noqa: B027 - optional
        """Refuse, before any work is done, embeddings or a head of `shape` on this grid.

        Raises:
            InputError: naming it.
        """

    def table_dtype(self, model_dtype: torch.dtype) -> torch.dtype:
        """The dtype of a table's scales: the model's own, for transformers takes the dtype of the
        first floating-point parameter for it, and writes it into config.json on saving."""
        return model_dtype

    def bits_of_group(self, grid: TableGrid, model_dtype: torch.dtype) -> int:
        """Bits of the numbers that a group of a table's columns shares."""
        return 8 * self.table_dtype(model_dtype).itemsize + (0 if grid.symmetric else grid.bits)

    def check_model(self, model: nn.Module) -> None:  # noqa: B027 - optional
        """Refuse, before any work is done, a model that its readers do not load, or not without
        harm. It has its plain modules, on the meta device.

        Raises:
            InputError: naming it and what would do.
        """

    def described_runtime(self, parts: Mapping[str, Any]) -> dict[str, Any]:
        """Entries of the quantization config for what runs beside the weights; `parts` are
        `RuntimeParts` in JSON values."""
        return {RUNTIME: {PARTS: parts}}

    def fitted(
        self, quantization: dict[str, Any], model: nn.Module, layers: Collection[str]
    ) -> dict[str, Any]:
        """The quantization config with what its readers must be told of a model like this. The
        model has its plain modules, on the meta device; `layers` are quantized."""
        return quantization

    def completed(self, config: dict[str, Any]) -> dict[str, Any]:
        """config.json with what its readers look for besides; the argument has all that
        transformers writes, and the quantization config."""
        return config

    @abstractmethod
    def loading_example(self, directory: Path) -> str:
        """Python lines that load the folder."""


@dataclass(frozen=True, kw_only=True)
class PackedLayer(Generic[Description]):
    """How a layer is read back."""

    parts: tuple[str, ...]
    """Names, under the module, of the tensors that replace its weight."""
    description: Description
    """What the codec needs besides them."""


class PackedEntry(FolderEntry, Generic[Description]):
    """The entry of a codec that has an inverse."""

    quant_method: ClassVar[str]

    def describes(self, quantization: Mapping[str, Any]) -> bool:
        """Whether a quantization config of config.json is one of these."""
        return quantization.get("quant_method") == self.quant_method

    @abstractmethod
    def packed_layers(
        self, keys: Mapping[str, str], config: Mapping[str, Any]
    ) -> dict[str, PackedLayer[Description]]:
        """Every quantized linear and table of a checkpoint, in the order of its tensors, from the
        quantization config. `keys` are the tensors: name in the model -> name in the files.

        Raises:
            InputError: the file is of a variant that is not read here.
        """

    def runtime(self, quantization: Mapping[str, Any], packed: Collection[str]) -> Any:
        """What `attach_runtime` takes; `packed` are the quantized linears, by their names in the
        model.

        Raises:
            InputError: the file is of a variant that is not read here.
        """
        return quantization.get(RUNTIME, {})

    def unused(self, config: Mapping[str, Any]) -> set[str] | None:
        """Names of the tensors that are in the files and no part of the model; None where the
        quantization config does not say."""
        return None


def others(layers: Mapping[str, StoredLayer], modules: Mapping[str, str]) -> dict[str, str]:
    """Of `modules`, those that are no `layers`."""
    return {name: file for name, file in modules.items() if name not in layers}


def modules_of(weights: Iterable[str]) -> list[str]:
    """The modules of which tensors of these names may be the weights, in readers that have them:
    single experts, layers that predict further tokens."""
    return [name.removesuffix(".weight") for name in weights if name.endswith(".weight")]


def refuse_undescribed(key: str) -> NoReturn:
    """
    Raises:
        InputError: always; nothing says what a tensor of the files is for.
    """
    raise InputError(
        f"tensor {shown(key)} has no place in the model, and config.json does not describe it; "
        "fetch the checkpoint again"
    )
