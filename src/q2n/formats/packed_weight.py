"""What a packed layer multiplies with: the kernels of its representation around its tensors.

For up to `FEW` tokens a kernel goes over the packed rows (kernels/packed_rows.py). For more, panels
of rows are dequantized and multiplied one after the other, so that of a large weight only a panel
is ever there. In a random basis (layers/rotated.py) the tokens are rotated, before and after, and
the weight never is; many tokens are columns there, which are faster to rotate than rows.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.nn import functional

from q2n.formats.described import Contradiction
from q2n.formats.stored import StoredLayer
from q2n.kernels import dispatch
from q2n.kernels.kronecker_product import KroneckerProduct, kronecker_columns
from q2n.kernels.packed_levels import LevelRows
from q2n.kernels.packed_partly_binary import PartlyBinaryRows
from q2n.kernels.packed_rows import PackedRows
from q2n.kernels.packed_trellis import TrellisRows
from q2n.kernels.packed_uniform import UniformRows
from q2n.kernels.stored_rows import codes_of_rows
from q2n.layers.rotated import basis_of
from q2n.linalg import lloyd_max
from q2n.linalg.groups import group_of_column
from q2n.linalg.kronecker import KroneckerMatrix

FEW = 8
"""Tokens up to which a row that is made for them alone costs less than a panel."""
_PANEL = 2**19
"""Weights of a panel: 1 MB in 16 bits."""
_BLOCK = 256
"""Tokens that are rotated at once: they stay in the second cache."""
Parts = Mapping[str, Shaped[Tensor, "..."]]
"""Tensors of a layer as they are stored, by name."""


class PackedWeight(ABC):
    """A weight of shape (out, in)."""

    @abstractmethod
    def product(
        self, x: Float[Tensor, "tokens in"], bias: Float[Tensor, " out"] | None
    ) -> Float[Tensor, "tokens out"]:
        """`x W^T + b` in the dtype of x. `bias` is in float32."""

    def columns_products(
        self, blocks: Sequence[Float[Tensor, "in _"]]
    ) -> list[Float[Tensor, "out _"]]:
        """`W x` for each block x of tokens, in its dtype; contiguous."""
        return [self.product(x.T, None).T.contiguous() for x in blocks]


def packed_weight(stored: StoredLayer, parts: Parts) -> PackedWeight | None:
    """The packed weight of a layer; None for a representation that has no kernel.

    Raises:
        Contradiction: the tensors do not fit each other.
    """
    make = _KINDS.get(stored.kind)
    return None if make is None else make(stored, parts)


@dataclass(frozen=True, eq=False)
class InRows(PackedWeight):
    """Rows that a kernel can make."""

    rows: PackedRows

    def product(
        self, x: Float[Tensor, "tokens in"], bias: Float[Tensor, " out"] | None
    ) -> Float[Tensor, "tokens out"]:
        """As `PackedWeight.product`."""
        if len(x) <= FEW:
            return dispatch.packed_product(x, self.rows, bias)
        bias = None if bias is None else bias.to(x.dtype)
        parts = [
            functional.linear(x, self._panel(x, piece), None if bias is None else bias[piece])
            for piece in self._pieces()
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def columns_products(
        self, blocks: Sequence[Float[Tensor, "in _"]]
    ) -> list[Float[Tensor, "out _"]]:
        """As `PackedWeight.columns_products`."""
        results = [x.new_empty(self.rows.shape[0], x.shape[1]) for x in blocks]
        for piece in self._pieces():
            panel = self._panel(blocks[0], piece)
            for x, result in zip(blocks, results, strict=True):
                torch.mm(panel, x, out=result[piece])
        return results

    def _pieces(self) -> list[slice]:
        """The rows of each panel, of nearly equal height."""
        out, columns = self.rows.shape
        count = -(-out // max(1, _PANEL // columns))
        return [slice(i * out // count, (i + 1) * out // count) for i in range(count)]

    def _panel(self, x: Float[Tensor, "_ _"], piece: slice) -> Float[Tensor, "rows in"]:
        return dispatch.packed_rows(x, self.rows, piece.start, piece.stop)


@dataclass(frozen=True, eq=False)
class WithColumns(PackedWeight):
    """Some columns in 16 bits beside a packed weight of the others."""

    others: PackedWeight
    kept: Int[Tensor, " kept"]
    columns: Int[Tensor, " k"]
    values: Float[Tensor, "out k"]

    def product(
        self, x: Float[Tensor, "tokens in"], bias: Float[Tensor, " out"] | None
    ) -> Float[Tensor, "tokens out"]:
        """As `PackedWeight.product`; both parts are added up in float32 for few tokens."""
        few = x.float() if len(x) <= FEW else x
        result = self.others.product(few.index_select(1, self.kept), bias)
        weak = few.index_select(1, self.columns)
        return result.addmm(weak, self.values.to(weak.dtype).T).to(x.dtype)


@dataclass(frozen=True, eq=False)
class Rotated(PackedWeight):
    """A packed weight in another basis."""

    inner: PackedWeight
    inputs: "KroneckerProduct | Turned"
    """`V diag(s)^-1`."""
    outputs: "KroneckerProduct | Turned"
    """`U^T`, then the output scales."""

    def product(
        self, x: Float[Tensor, "tokens in"], bias: Float[Tensor, " out"] | None
    ) -> Float[Tensor, "tokens out"]:
        """As `PackedWeight.product`; between the rotations in float32 for few tokens."""
        if len(x) <= FEW:
            turned = self.inner.product(_turn(x, self.inputs, torch.float32), None)
            result = _turn(turned, self.outputs, x.dtype)
        else:
            result = self._of_many(x)
        return result if bias is None else result + bias.to(x.dtype)

    def _of_many(self, x: Float[Tensor, "tokens in"]) -> Float[Tensor, "tokens out"]:
        blocks = [
            _turn_columns(block.T.clone(memory_format=torch.contiguous_format), self.inputs)
            for block in x.split(_BLOCK)
        ]
        turned = self.inner.columns_products(blocks)
        del blocks
        result = x.new_empty(len(x), turned[0].shape[0])
        for block, y in zip(result.split(_BLOCK), turned, strict=True):
            block.copy_(_turn_columns(y, self.outputs).T)
        return result


@dataclass(frozen=True, eq=False)
class Turned:
    """A rotation whose blocks differ along an axis: torch applies it."""

    matrix: KroneckerMatrix
    back: bool
    divisor: Float[Tensor, " n"] | None
    factor: Float[Tensor, " n"] | None

    def apply(self, x: Float[Tensor, "tokens n"]) -> Float[Tensor, "tokens n"]:
        """The rotated rows, in float32."""
        x = x.float() if self.divisor is None else x.float() / self.divisor
        x = self.matrix.undo(x) if self.back else self.matrix.apply(x)
        return x if self.factor is None else x * self.factor


def _turn(
    x: Float[Tensor, "tokens n"], rotation: KroneckerProduct | Turned, dtype: torch.dtype
) -> Float[Tensor, "tokens n"]:
    if isinstance(rotation, Turned):
        return rotation.apply(x).to(dtype)
    return dispatch.kronecker_product(x, rotation, dtype)


def _turn_columns(
    x: Float[Tensor, "n tokens"], rotation: KroneckerProduct | Turned
) -> Float[Tensor, "n tokens"]:
    if isinstance(rotation, Turned):
        return rotation.apply(x.T).T.to(x.dtype).contiguous()
    return kronecker_columns(x, rotation)


def _rotation(
    matrix: KroneckerMatrix,
    back: bool,
    divisor: Float[Tensor, " n"] | None,
    factor: Float[Tensor, " n"] | None,
    device: torch.device,
) -> KroneckerProduct | Turned:
    """The matrix as the kernel takes it, `back` for its transpose."""
    matrix = matrix.ready_for(torch.empty(0, device=device))
    blocks = [factor.blocks for factor in matrix.factors]
    if any(block is None or len(block) > 1 for block in blocks) or len(blocks) != 2:
        return Turned(matrix, back, divisor, factor)
    natural = torch.arange(matrix.size, device=device)
    into, out = (natural if order is None else order for order in (matrix.into, matrix.out))
    left, right = (block[0] for block in blocks if block is not None)
    if back:
        left, right, into, out = left.T, right.T, out.argsort(), into.argsort()
    return KroneckerProduct(
        left.contiguous(), right.T.contiguous(), into.int(), out.int(), divisor, factor
    )


def _uniform(stored: StoredLayer, parts: Parts) -> PackedWeight:
    size, columns = stored.metadata["group_size"], stored.shape[1]
    ends = torch.arange(size, columns + size, size).clamp(max=columns)
    return InRows(_uniform_rows(stored, parts, ends))


def _uniform_rows(stored: StoredLayer, parts: Parts, ends: Int[Tensor, " groups"]) -> UniformRows:
    shape = (stored.shape[0], int(ends[-1]))
    scale = parts["scale"].contiguous()
    return UniformRows(
        shape, stored.metadata["bits"], parts["codes"], scale, parts.get("zero"), ends
    )


def _outliers(stored: StoredLayer, parts: Parts) -> PackedWeight | None:
    columns = parts["columns"]
    others = torch.ones(stored.shape[1], dtype=torch.bool, device=columns.device)
    others[columns.long()] = False
    kept = others.nonzero().flatten()
    size = stored.metadata["group_size"]
    group = group_of_column(stored.shape[1], size, kept.device)[kept]
    ends = torch.bincount(group, minlength=parts["scale"].shape[1]).cumsum(0).cpu()
    if not len(kept):
        return None
    inner = InRows(_uniform_rows(stored, parts, ends))
    return WithColumns(inner, kept.int(), columns, parts["values"])


def _levels(stored: StoredLayer, parts: Parts, levels: Float[Tensor, " n"]) -> PackedWeight:
    codes = parts["codes"]
    table = levels.to(codes.device, torch.float32).unsqueeze(0)
    rows = LevelRows(
        stored.shape, stored.metadata["bits"], codes, table, _per_row(stored, parts["scale"])
    )
    return InRows(rows)


def _centred(stored: StoredLayer, parts: Parts) -> PackedWeight:
    top = 2 ** stored.metadata["bits"] - 1
    return _levels(stored, parts, torch.arange(top + 1).float() * (2 / top) - 1)


def _lloyd_max(stored: StoredLayer, parts: Parts) -> PackedWeight:
    bits = stored.metadata["bits"]
    return _levels(stored, parts, lloyd_max.levels(bits) / lloyd_max.outermost(bits))


def _codebook(stored: StoredLayer, parts: Parts) -> PackedWeight:
    tables = parts["codebook"].float().contiguous()
    bits = stored.metadata["bits"]
    return InRows(LevelRows(stored.shape, bits, parts["codes"], tables, None))


def _trellis(stored: StoredLayer, parts: Parts) -> PackedWeight:
    scale = _per_row(stored, parts["scale"])
    return InRows(TrellisRows(stored.shape, stored.metadata["bits"], parts["codes"], scale))


def _per_row(stored: StoredLayer, scale: Float[Tensor, " scales"]) -> Float[Tensor, " out"]:
    return scale.float().expand(stored.shape[0]).contiguous()


def _partly_binary(stored: StoredLayer, parts: Parts) -> PackedWeight:
    (rows, columns), facts = stored.shape, stored.metadata
    count = codes_of_rows(parts["low"], 1, 0, rows, columns).sum(1)
    starts = functional.pad(count.cumsum(0), (1, 0))
    if rows * columns - int(starts[-1]) != stored.tensors["high_codes"].numel:
        raise Contradiction("the mask and the number of codes do not fit")

    def floats(name: str) -> Float[Tensor, "out groups"] | None:
        return parts[name].float().contiguous() if name in parts else None

    zero = codes_of_rows(parts["zero"], facts["high_bits"], 0, rows, 1)
    return InRows(
        PartlyBinaryRows(
            shape=stored.shape,
            low=parts["low"],
            low_codes=parts.get("low_codes"),
            low_bits=facts["low_bits"],
            high_codes=parts["high_codes"],
            high_bits=facts["high_bits"],
            starts=starts,
            magnitude=floats("magnitude"),
            mean=floats("mean"),
            scale=parts["scale"].float().flatten().contiguous(),
            zero=zero.flatten().contiguous(),
            group_size=facts["group_size"],
        )
    )


def _rotated(stored: StoredLayer, parts: Parts) -> PackedWeight | None:
    facts = stored.metadata
    inner = packed_weight(*_inside(stored, parts))
    if inner is None:
        return None
    device = next(iter(parts.values())).device
    rescale, scale = parts.get("rescale"), parts.get("output_scale")
    basis = basis_of(stored.shape, facts["projection"], facts["seed"], rescale)
    assert basis.left is not None and basis.right is not None
    divisor = None if rescale is None else rescale.float()
    factor = None if scale is None else scale.float()
    inputs = _rotation(basis.right, False, divisor, None, device)
    return Rotated(inner, inputs, _rotation(basis.left, True, None, factor, device))


def _inside(stored: StoredLayer, parts: Parts) -> tuple[StoredLayer, Parts]:
    """The layer within."""

    def within(entries: Mapping) -> dict:
        prefix = "inner_"
        return {
            name.removeprefix(prefix): value
            for name, value in entries.items()
            if name.startswith(prefix)
        }

    inner = replace(
        stored,
        kind=stored.metadata["inner"],
        metadata=within(stored.metadata),
        tensors=within(stored.tensors),
    )
    return inner, within(parts)


_KINDS: dict[str, Callable[[StoredLayer, Parts], PackedWeight | None]] = {
    "uniform": _uniform,
    "outliers": _outliers,
    "centred": _centred,
    "lloyd-max": _lloyd_max,
    "codebook": _codebook,
    "trellis": _trellis,
    "partly_binary": _partly_binary,
    "rotated": _rotated,
}
"""By representation."""
