"""A causal LM of which one decoder block at a time is in memory.

Decoder blocks are found by shape, not by name: the `nn.ModuleList` with as many
entries as the config has hidden layers. What a block is called with is found by
running the model once with every block's forward replaced by a recorder: that needs
the embeddings only, and it catches every keyword argument of every block (masks and
position embeddings may differ from block to block).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from itertools import chain
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from q2n.errors import InputError
from q2n.models.model_source import ModelSource
from q2n.models.running import running
from q2n.models.targets import EVERY_LAYER, LayerFilter, Target, matrix_holders, targets_in


@dataclass(frozen=True)
class BlockCall:
    """What the model passes to one block besides the hidden states."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def window(self, number: int, batch: int) -> "BlockCall":
        """The call for one window of a batch of `batch` windows."""

        def one(tensor: Tensor) -> Tensor:
            shared = tensor.ndim == 0 or len(tensor) != batch
            return tensor if shared else tensor[number : number + 1]

        return BlockCall(_map_tensors(one, self.args), _map_tensors(one, dict(self.kwargs)))


@dataclass(frozen=True)
class BatchInputs:
    """One batch of windows at the input of the first block."""

    hidden: Float[Tensor, "windows length hidden"]
    calls: list[BlockCall]
    """One per block; equal tensors are the same object, within and between batches."""


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
        self._model = source.skeleton()
        self._list_name, self._blocks = find_blocks(self._model)
        self._stored = set(source.names())
        self._seen: list[Tensor] = []
        self._outside_is_loaded = False
        names = list(self._all_targets())
        if not names:
            raise InputError(
                f"{type(self._model).__name__}: its decoder blocks hold no linear layer (their "
                f"weights lie in {', '.join(matrix_holders(self._blocks))}), and only those are "
                "quantized; this architecture is not supported"
            )
        layers.check(names)

    def __len__(self) -> int:
        return len(self._blocks)

    @property
    def vocabulary(self) -> int | None:
        """Tokens that have an embedding; None where the model does not show it."""
        try:
            return cast(Tensor, self._model.get_input_embeddings().weight).shape[0]
        except (AttributeError, NotImplementedError):
            return None

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
        return {k: target for k, target in self._all_targets().items() if self.layers.keeps(k)}

    def targets_of(self, index: int, block: nn.Module) -> tuple[dict[str, Target], list[str]]:
        """Of a loaded block: the matrices to quantize, and the names of those that the filter
        leaves in full precision, both by their names in the block."""
        everything, prefix = targets_in(block), self.block_name(index)
        ignored = [name for name in everything if not self.layers.keeps(f"{prefix}.{name}")]
        return {k: target for k, target in everything.items() if k not in ignored}, ignored

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
        tensors = self._original_tensors(block, self.block_name(index), recurse=True)
        block.load_state_dict(tensors, strict=False, assign=True)
        return block.to(self.device).requires_grad_(False)

    def record_inputs(self, batches: Iterable[Int[Tensor, "_ _"]]) -> Iterator[BatchInputs]:
        """Run the embeddings on each batch and record what each block would be called with.

        Raises:
            NumericalError: a tensor outside the blocks is NaN or Inf in the dtype of the run.
        """
        if not self._outside_is_loaded:
            self._load_outside()
            self._outside_is_loaded = True
        for tokens in batches:
            with torch.no_grad():
                yield self._record(tokens.to(self.device))
        self._seen.clear()

    def _record(self, tokens: Int[Tensor, "windows length"]) -> BatchInputs:
        recorder = _Recorder(self._blocks, self._intern)
        try:
            with running(type(self._model).__name__):
                self._model(input_ids=tokens, use_cache=False)
        except _LastBlockReached:
            pass
        finally:
            recorder.remove()
        return BatchInputs(recorder.hidden.to(self.device), recorder.calls)

    def _intern(self, tensor: Tensor) -> Tensor:
        """The tensor on the device, or an equal one seen before: masks and positions repeat."""
        tensor = tensor.to(self.device)
        for seen in self._seen:
            if seen is tensor or (
                seen.shape == tensor.shape
                and seen.dtype == tensor.dtype
                and torch.equal(seen, tensor)
            ):
                return seen
        self._seen.append(tensor)
        return tensor

    def _load_outside(self) -> None:
        """Embeddings and whatever else stands before the blocks. The head is read too, so that
        bad numbers in it are named before the work, and dropped again."""
        head = self._model.get_output_embeddings()
        for name, module in self._model.named_modules():
            if name == self._list_name or name.startswith(self._list_name + "."):
                continue
            tensors = self._original_tensors(module, name, recurse=False)
            if module is head:
                continue
            module.load_state_dict(tensors, strict=False, assign=True)
            for own, buffer in list(module.named_buffers(recurse=False)):
                setattr(module, own, buffer.to(self.device))  # also one that is never stored

    def _original_tensors(
        self, module: nn.Module, prefix: str, *, recurse: bool
    ) -> dict[str, Tensor]:
        """What the source stores for a module, by the module's own names, on the device."""
        named = chain(
            module.named_parameters(recurse=recurse), module.named_buffers(recurse=recurse)
        )
        names = {name: f"{prefix}.{name}" if prefix else name for name, _ in named}
        return {
            name: self.source.in_model_dtype(full).to(self.device)
            for name, full in names.items()
            if full in self._stored
        }


class _LastBlockReached(Exception):
    """Ends a recording run: nothing after the blocks is needed."""


class _Recorder:
    """Stands in for every block's forward and notes what it is called with."""

    def __init__(self, blocks: nn.ModuleList, intern: Callable[[Tensor], Tensor]):
        self.blocks, self.intern = blocks, intern
        self.calls: list[BlockCall] = []
        self.hidden: Tensor
        self._own_forwards = [block.__dict__.get("forward") for block in blocks]  # of hooks
        for block in blocks:
            block.forward = self._record

    def _record(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not self.calls:
            self.hidden = hidden_states
        args, kwargs = _map_tensors(self.intern, args), _map_tensors(self.intern, kwargs)
        self.calls.append(BlockCall(args, kwargs))
        if len(self.calls) == len(self.blocks):
            raise _LastBlockReached
        return hidden_states

    def remove(self) -> None:
        for block, own in zip(self.blocks, self._own_forwards, strict=True):
            del block.forward
            if own is not None:
                block.forward = own


def _map_tensors(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    """The arguments of a call with every tensor changed, in tuples, lists and dicts too."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple | list):
        return type(value)(_map_tensors(change, item) for item in value)
    if isinstance(value, dict):
        return {key: _map_tensors(change, item) for key, item in value.items()}
    return value


def find_blocks(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """Name and list of the decoder blocks.

    Raises:
        InputError: there is no such list.
    """
    count = model.config.get_text_config().num_hidden_layers
    lists = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
    ]
    if not lists:
        raise InputError(
            f"{type(model).__name__}: it has no list of {count} decoder blocks; "
            "this architecture is not supported"
        )
    return max(lists, key=lambda item: sum(p.numel() for p in item[1].parameters()))
