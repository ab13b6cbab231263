"""A causal LM of which one decoder block at a time is in memory.

block_list.py finds the blocks, recording.py what each of them is called with.
"""

import re
from collections.abc import Collection, Iterable, Iterator
from copy import deepcopy
from functools import cached_property, partial
from itertools import chain
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from q2n.errors import InputError
from q2n.models.beside import beside_note
from q2n.models.block_list import find_blocks, require_decoder
from q2n.models.eager_attention import let_weights_go
from q2n.models.kept import kept_note, kept_targets, shared_parameters
from q2n.models.model_source import ModelSource
from q2n.models.read_ahead import ReadAhead
from q2n.models.recording import BatchInputs, Recorder
from q2n.models.targets import (
    EVERY_LAYER,
    LayerFilter,
    Target,
    matrix_holders,
    small_targets,
    targets_in,
)
from q2n.models.ties import aliases
from q2n.models.uncovered import require_known_experts, uncovered_modules


class BlockwiseModel:
    """The blocks of a source, loaded on demand.

    Raises:
        InputError: no decoder blocks, none of their matrices can be quantized, or `layers` does
            not fit their names.
    """

    def __init__(
        self,
        source: ModelSource,
        device: str | torch.device = "cpu",
        layers: LayerFilter = EVERY_LAYER,
    ):
        self.source, self.device, self.layers = source, torch.device(device), layers
        require_decoder(source.config)
        self._model = source.skeleton()
        self._list_name, self._blocks = find_blocks(self._model)
        let_weights_go(self._model)
        self._recorder = Recorder(self._model, self._blocks, partial(self.load_block, 0))
        self._stored, self._tied = set(source.names()), aliases(self._model)
        self._ahead = ReadAhead(self._tensors_of, pinned=self.device.type == "cuda")
        self._outside_is_loaded = False
        names = list(self._all_targets)
        if not names:
            raise InputError(
                f"{type(self._model).__name__}: its decoder blocks hold no linear layer (their "
                f"weights lie in {', '.join(matrix_holders(self._blocks))}), and only those are "
                "quantized; this architecture is not supported"
            )
        blocks = {self.block_name(index): block for index, block in enumerate(self._blocks)}
        self._kept, self._shared = kept_targets(blocks), shared_parameters(blocks)
        self._small = small_targets(blocks) - self._kept.keys()
        loose = {
            f"{self._list_name}.{name}": count
            for name, count in uncovered_modules(self._blocks).items()
        }
        layers.check(names, self._left_out, also=loose)
        require_known_experts(self._model, loose, layers.ignores)
        if not any(map(self._keeps, names)):
            raise InputError(
                f"{type(self._model).__name__}: several of its blocks share every layer that the "
                "settings select, and only layers of one block are quantized; choose other layers"
            )

    def __len__(self) -> int:
        return len(self._blocks)

    @property
    def vocabulary(self) -> int | None:
        """Tokens that have an embedding; None where the model does not show it."""
        try:
            return cast(Tensor, self._model.get_input_embeddings().weight).shape[0]
        except (AttributeError, NotImplementedError):
            return None

    @property
    def longest(self) -> int | None:
        """Positions that the model has; None where it does not say."""
        return getattr(self.source.config.get_text_config(), "max_position_embeddings", None)

    def block_name(self, index: int) -> str:
        """Module name of a block, e.g. "model.layers.3"."""
        return f"{self._list_name}.{index}"

    @property
    def blocks(self) -> nn.ModuleList:
        """The modules of all blocks. Nothing is loaded: ask them for shapes, not for weights."""
        return self._blocks

    def targets(self) -> dict[str, Target]:
        """The matrices to quantize in all blocks, by full name (a target's own name is the one in
        its block). Nothing is loaded: ask them for shapes, not for weights."""
        return {k: target for k, target in self._all_targets.items() if self._keeps(k)}

    def experts_left(self) -> list[str]:
        """Full names of linears of experts that stay as they are beside quantized ones of the same
        mixture."""
        mixtures: dict[str, list[str]] = {}
        for name, target in self._all_targets.items():
            if target.experts:
                mixtures.setdefault(name.rsplit(".", 2)[0], []).append(name)
        split = [names for names in mixtures.values() if any(map(self._keeps, names))]
        return [name for names in split for name in names if not self._keeps(name)]

    def notes(self) -> list[str]:
        """What a user must know of the layers that stay in full precision unasked."""
        notes = [beside_note(self._model, self._list_name)]
        if not self.layers.only:
            notes += [kept_note(self._kept, self._list_name), self._small_note()]
        return [note for note in notes if note is not None]

    def _small_note(self) -> str | None:
        left = [name for name in self._all_targets if name in self._small]
        if not left:
            return None
        prefix = re.escape(self._list_name)
        kinds = dict.fromkeys(
            re.sub(rf"^{prefix}\.\d+\.", f"{self._list_name}.*.", x) for x in left
        )
        return (
            "Small layers stay in full precision (a side below 128, under 1 % of the block): "
            f"{', '.join(kinds)}; --only quantizes them"
        )

    def shared_in(self, index: int) -> set[str]:
        """Parameters of a block that are another block's too, by their names in the block."""
        prefix = f"{self.block_name(index)}."
        return {name.removeprefix(prefix) for name in self._shared if name.startswith(prefix)}

    def targets_of(self, index: int, block: nn.Module) -> tuple[dict[str, Target], list[str]]:
        """Of a loaded block: the matrices to quantize, and the names of those that the filter
        leaves in full precision and small ones, both by their names in the block."""
        everything, prefix = targets_in(block), self.block_name(index)
        ignored = [name for name in everything if not self._keeps(f"{prefix}.{name}")]
        return {k: target for k, target in everything.items() if k not in ignored}, ignored

    def _keeps(self, name: str) -> bool:
        return f"{name}.weight" not in self._shared and self.layers.keeps(name, self._left_out)

    @property
    def _left_out(self) -> Collection[str]:
        """Layers that stay in full precision unless `only` names them."""
        return self._small | self._kept.keys()

    @cached_property
    def _all_targets(self) -> dict[str, Target]:
        return {
            f"{self.block_name(index)}.{name}": target
            for index, block in enumerate(self._blocks)
            for name, target in targets_in(block).items()
        }

    def load_block(self, index: int) -> nn.Module:
        """A fresh copy of one block with its original weights, on the device.

        Raises:
            NumericalError: a weight is NaN or Inf in the dtype of the run.
        """
        block = deepcopy(self._blocks[index])
        block.load_state_dict(self._ahead.take(index), strict=False, assign=True)
        return block.to(self.device, non_blocking=True).requires_grad_(False)

    def read_ahead(self, index: int) -> None:
        """Begin to read a block that `load_block` will ask for, if there is one of this number and
        the device is not the CPU: there the thread would take time from what is computed."""
        if 0 <= index < len(self) and self.device.type != "cpu":
            self._ahead.begin(index)

    def _tensors_of(self, index: int) -> dict[str, Tensor]:
        """Of a block, on the CPU."""
        return self._original_tensors(self._blocks[index], self.block_name(index), recurse=True)

    def _tensors_outside(self, module: nn.Module, name: str) -> dict[str, Tensor]:
        """A module's own, on the device."""
        tensors = self._original_tensors(module, name, recurse=False)
        return {own: tensor.to(self.device) for own, tensor in tensors.items()}

    def record_inputs(self, batches: Iterable[Int[Tensor, "_ _"]]) -> Iterator[BatchInputs]:
        """Run the embeddings on each batch and record what each block would be called with.

        Args:
            batches: token windows of one length.

        Raises:
            InputError: the model does not run its blocks one after another.
            NumericalError: a tensor outside the blocks is NaN or Inf in the dtype of the run.
        """
        self._require_outside()
        pool, axes = _Pool(self.device), None
        for tokens in batches:
            with torch.no_grad():
                tokens = tokens.to(self.device)
                axes = axes or self._recorder.axes(tokens)
                inputs = self._recorder.record(tokens, axes, pool.one)
            yield inputs

    def run_after(
        self,
        tokens: Int[Tensor, "windows length"],
        hidden: Float[Tensor, "*batch hidden"],
        module: nn.Module,
    ) -> Any:
        """What the model, or the part of it that holds the blocks, returns on these windows when
        its last block returns these hidden states: what comes after the blocks, by the model's own
        code. No block is loaded. Gradients are taken where the hidden states ask for them.

        Args:
            module: `without_blocks` or a part of it.

        Raises:
            InputError: the model does not run its blocks one after another.
        """
        self._require_outside()
        with torch.set_grad_enabled(hidden.requires_grad):
            return self._recorder.run_after(tokens.to(self.device), hidden, module)

    @cached_property
    def without_blocks(self) -> PreTrainedModel:
        """The model with everything loaded but its blocks."""
        head = self._model.get_output_embeddings()
        self._require_outside()
        name = next((name for name, x in self._model.named_modules() if x is head), None)
        if head is not None and name is not None:
            state = self._tensors_outside(head, name)
            for own, _ in head.named_parameters(recurse=False):
                for other in self._tied.get(f"{name}.{own}", ()):
                    if own not in state and other in self._stored:
                        state[own] = self._model.get_parameter(other).detach()
            head.load_state_dict(state, strict=False, assign=True)
        return self._model

    def _require_outside(self) -> None:
        if not self._outside_is_loaded:
            self._load_outside()
            self._outside_is_loaded = True

    def _load_outside(self) -> None:
        """Embeddings and whatever else stands before the blocks. The head is read too, so that
        bad numbers in it are named before the work, and dropped again."""
        head = self._model.get_output_embeddings()
        for name, module in self._model.named_modules():
            if name == self._list_name or name.startswith(self._list_name + "."):
                continue
            if module is head:
                self._original_tensors(module, name, recurse=False)
                continue
            tensors = self._tensors_outside(module, name)
            module.load_state_dict(tensors, strict=False, assign=True)
            for own, buffer in list(module.named_buffers(recurse=False)):
                setattr(module, own, buffer.to(self.device))  # also one that is never stored

    def _original_tensors(
        self, module: nn.Module, prefix: str, *, recurse: bool
    ) -> dict[str, Tensor]:
        """What the source stores for a module, by the module's own names, on the CPU."""
        named = chain(
            module.named_parameters(recurse=recurse), module.named_buffers(recurse=recurse)
        )
        names = {name: f"{prefix}.{name}" if prefix else name for name, _ in named}
        if recurse:  # a block may share tensors with another one
            names = {name: self._stored_name(full) for name, full in names.items()}
        return {
            name: self.source.in_model_dtype(full)
            for name, full in names.items()
            if full in self._stored
        }

    def _stored_name(self, name: str) -> str:
        """The name under which the source has a tensor: its own, or that of one tied to it."""
        return next(filter(self._stored.__contains__, [name, *self._tied.get(name, ())]), name)


class _Pool:
    """Tensors on a device, equal ones once: masks and positions repeat."""

    def __init__(self, device: torch.device):
        self.device = device
        self._seen: dict[object, list[Tensor]] = {}

    def one(self, tensor: Tensor) -> Tensor:
        """The tensor, or an equal one seen before."""
        tensor = tensor.to(self.device)
        alike = self._seen.setdefault((tensor.shape, tensor.dtype, tensor.sum().item()), [])
        for seen in alike:
            if seen is tensor or torch.equal(seen, tensor):
                return seen
        alike.append(tensor)
        return tensor
