"""A source whose model is rotated, and whose activations and cache are to be rounded.

It hands out tensors, modules and a configuration as any source does, so that blocks are loaded,
quantized, stored and written as ever; each tensor is rotated when it is asked for. What has to run
beside the weights is its `runtime`. The mathematics: transforms/decoder.py.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from pathlib import Path

import torch
from jaxtyping import Shaped
from torch import Tensor, nn
from transformers import PreTrainedModel

from q2n.models.expert_parts import ExpertPart
from q2n.models.layout import (
    ATTENTION,
    DOWN,
    LINEARS,
    NORM_OF,
    NORMS,
    OUTPUT,
    VALUE,
    DecoderLayout,
    find_layout,
)
from q2n.models.model_source import ModelSource
from q2n.models.rounded_linears import rounded_linears
from q2n.models.targets import EVERY_LAYER, LayerFilter
from q2n.models.ties import set_tied
from q2n.transforms.decoder import DecoderRotation
from q2n.transforms.model_changes import ModelChanges
from q2n.transforms.runtime import RuntimeParts, attach_rotations


def changed_source(
    source: ModelSource,
    changes: ModelChanges,
    seed: int,
    layers: LayerFilter = EVERY_LAYER,
) -> ModelSource:
    """The source of the changed model; the same source if nothing changes.

    Raises:
        InputError: the model is of a kind that cannot be rotated, or whose inputs or cache cannot
            be rounded, or groups do not divide it.
    """
    if changes.none:
        return source
    model = source.skeleton()
    rounded: tuple[str, ...] = ()
    if changes.activations is not None:
        rounded = rounded_linears(model, layers, changes.activations)
    if changes.rotate == "none" and changes.cache is None:
        return RuntimeSource(source, RuntimeParts(rounded=rounded, activations=changes.activations))
    layout = find_layout(model)
    sizes = layout.sizes
    if changes.cache is not None:
        changes.cache.check(sizes.head_dim, f"a head of {source.label}")
    if changes.rotate == "none":
        return RuntimeSource(source, _runtime_parts(layout, changes, rounded, None))
    rotation = DecoderRotation.build(
        sizes,
        "random" if changes.rotate == "random" else "hadamard",
        seed,
        online=changes.rotate_online,
    )
    return RotatedSource(
        source, _runtime_parts(layout, changes, rounded, rotation), layout, rotation
    )


def _runtime_parts(
    layout: DecoderLayout,
    changes: ModelChanges,
    rounded: tuple[str, ...],
    rotation: DecoderRotation | None,
) -> RuntimeParts:
    rotated, keys = {}, None
    if rotation is not None and changes.rotate_online:
        keys = rotation.head if changes.cache is not None else None
        rotated = {
            layout.everywhere(name): matrix
            for name, matrix in ((OUTPUT, rotation.mixing), (DOWN, rotation.gated))
            if not matrix.is_identity
        }
    return RuntimeParts(
        rotated=rotated,
        rounded=rounded,
        activations=changes.activations,
        attention=layout.everywhere(ATTENTION),
        keys=keys,
        cache=changes.cache,
    )


class RuntimeSource(ModelSource):
    """Another source's tensors, and parts that run beside them."""

    def __init__(self, inner: ModelSource, parts: RuntimeParts):
        self.inner, self.parts = inner, parts
        self.runtime = None if parts.none else parts
        self.label, self.config = inner.label, inner.config
        self.dtype, self.folder = inner.dtype, inner.folder
        self.trust_remote_code, self.only_config = inner.trust_remote_code, inner.only_config

    def skeleton(self) -> PreTrainedModel:
        return self.inner.skeleton()

    def names(self) -> list[str]:
        return self.inner.names()

    def source_key(self, name: str) -> str:
        return self.inner.source_key(name)

    def tensor(self, name: str) -> Shaped[Tensor, "..."]:
        return self.inner.tensor(name)

    def dtype_of(self, name: str) -> torch.dtype:
        return self.inner.dtype_of(name)

    @property
    def merges(self) -> Mapping[tuple[str, ...], tuple[str, ...]]:
        return self.inner.merges

    @property
    def fused(self) -> Mapping[str, Mapping[str, ExpertPart]]:
        return self.inner.fused

    @property
    def untaken(self) -> list[str]:
        return self.inner.untaken

    def stored(self, key: str) -> Shaped[Tensor, "..."]:
        return self.inner.stored(key)

    def stored_size(self, key: str) -> tuple[int, int]:
        return self.inner.stored_size(key)

    @property
    def notes(self) -> list[str]:
        return self.inner.notes

    def digest(self) -> str:
        total = hashlib.sha256(self.inner.digest().encode())
        total.update(json.dumps(self.parts.to_json()).encode())
        return total.hexdigest()

    def size_bytes(self) -> int:
        return self.inner.size_bytes()

    def save_auxiliary(self, directory: Path) -> None:
        self.inner.save_auxiliary(directory)


class RotatedSource(RuntimeSource):
    """The rotated model: norm weights folded into the linears, the head untied."""

    def __init__(
        self,
        inner: ModelSource,
        parts: RuntimeParts,
        layout: DecoderLayout,
        rotation: DecoderRotation,
    ):
        super().__init__(inner, parts)
        self.layout, self.rotation = layout, rotation
        self.config = set_tied(deepcopy(inner.config), False)
        self._head = f"{layout.head}.weight"
        self._tied = self._head not in inner.names()
        self._rules = dict(self._outside()) | dict(self._inside())

    def skeleton(self) -> PreTrainedModel:
        model = self.inner.skeleton()
        set_tied(model.config, False)
        head = model.get_submodule(self.layout.head)
        if self._tied:
            weight = head.get_parameter("weight").detach()
            head.weight = nn.Parameter(weight, requires_grad=False)
        attach_rotations(model, self.parts)
        return model

    def names(self) -> list[str]:
        return [*self.inner.names(), *([self._head] if self._tied else [])]

    def source_key(self, name: str) -> str:
        key = self.inner.source_key(name)
        return name if self._tied and key == self._head else key  # it stores the head only

    @property
    def merges(self) -> Mapping[tuple[str, ...], tuple[str, ...]]:
        return {}  # what the files hold is not rotated

    @property
    def fused(self) -> Mapping[str, Mapping[str, ExpertPart]]:
        return {}  # the same

    @property
    def untaken(self) -> list[str]:
        return []  # the same

    def tensor(self, name: str) -> Shaped[Tensor, "..."]:
        """One tensor of the rotated model, in float32 where a rotation has changed it."""
        stored = f"{self.layout.embeddings}.weight" if self._is_tied_head(name) else name
        tensor = self.inner.tensor(stored)
        return self._rules[name](tensor.float()) if name in self._rules else tensor

    def digest(self) -> str:
        total = hashlib.sha256(super().digest().encode())
        signs = self.rotation.residual.apply(torch.ones(self.layout.sizes.hidden))
        total.update(signs.numpy().tobytes())  # tells one rotation of the stream from another
        return total.hexdigest()

    def size_bytes(self) -> int:
        tied = self.layout.sizes.hidden * self.config.get_text_config().vocab_size
        return self.inner.size_bytes() + self._tied * tied * self.dtype.itemsize

    def _is_tied_head(self, name: str) -> bool:
        return self._tied and name == self._head

    def _norm_weight(self, norm: str) -> Tensor:
        return self.inner.tensor(f"{norm}.weight").float()

    def _outside(self) -> Iterator[tuple[str, Callable[[Tensor], Tensor]]]:
        layout, rotation = self.layout, self.rotation
        yield f"{layout.embeddings}.weight", rotation.embedding
        yield (
            self._head,
            lambda weight: rotation.reader(weight, self._norm_weight(layout.last_norm)),
        )
        yield f"{layout.last_norm}.weight", torch.ones_like

    def _inside(self) -> Iterator[tuple[str, Callable[[Tensor], Tensor]]]:
        """What becomes of the tensors of the blocks, by name."""
        rotation = self.rotation
        for index in range(self.layout.count):
            block = f"{self.layout.blocks}.{index}"
            for name in NORMS:
                yield f"{block}.{name}.weight", torch.ones_like
            for name in LINEARS:
                yield f"{block}.{name}.weight", self._weight_rule(block, name)
            yield f"{block}.{VALUE}.bias", rotation.value_bias
            yield f"{block}.{OUTPUT}.bias", rotation.writer_bias
            yield f"{block}.{DOWN}.bias", rotation.writer_bias

    def _weight_rule(self, block: str, name: str) -> Callable[[Tensor], Tensor]:
        if name == OUTPUT:
            return self.rotation.attention_output
        if name == DOWN:
            return self.rotation.gated_output
        rotate = self.rotation.value if name == VALUE else self.rotation.reader
        return lambda weight: rotate(weight, self._norm_weight(f"{block}.{NORM_OF[name]}"))
