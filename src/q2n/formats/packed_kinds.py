"""The packed weight of each representation, made from its stored tensors."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.nn import functional

from q2n.formats.described import Contradiction
from q2n.formats.packed_rotation import Rotated, rotation
from q2n.formats.packed_weight import InRows, PackedWeight, TwoKindsOfColumns, WithColumns
from q2n.formats.stored import StoredLayer
from q2n.kernels.packed_levels import LevelRows
from q2n.kernels.packed_partly_binary import PartlyBinaryRows
from q2n.kernels.packed_trellis import TrellisRows
from q2n.kernels.packed_uniform import UniformRows
from q2n.kernels.stored_rows import codes_of_rows
from q2n.layers.fields import nested_fields
from q2n.layers.rotated import RotatedLinear, basis_of
from q2n.linalg import lloyd_max
from q2n.linalg.groups import group_of_column

Parts = Mapping[str, Shaped[Tensor, "..."]]
"""Tensors of a layer as they are stored, by name."""


def packed_weight(stored: StoredLayer, parts: Parts) -> PackedWeight | None:
    """The packed weight of a layer; None for a representation that has no kernel.

    Raises:
        Contradiction: the tensors do not fit each other.
    """
    make = _KINDS.get(stored.kind)
    return None if make is None else make(stored, parts)


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


def _salient_columns(stored: StoredLayer, parts: Parts) -> PackedWeight | None:
    (rows, columns), bits = stored.shape, stored.metadata["high_bits"]
    salient = codes_of_rows(parts["salient"], 1, 0, 1, columns).squeeze(0).bool()
    low, high = (~salient).nonzero().flatten(), salient.nonzero().flatten()
    if not len(low) or not len(high):
        return None
    mean, magnitude = parts["mean"].float(), parts["magnitude"].float()
    tables = torch.stack([mean - magnitude, mean + magnitude], 1)
    scale, end = parts["scale"].unsqueeze(1).contiguous(), torch.tensor([len(high)])
    return TwoKindsOfColumns(
        InRows(LevelRows((rows, len(low)), 1, parts["low_codes"], tables, None)),
        low.int(),
        parts["factor"].float(),
        InRows(
            UniformRows((rows, len(high)), bits, parts["high_codes"], scale, parts["zero"], end)
        ),
        high.int(),
    )


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
    inputs = rotation(basis.right, False, divisor, None, device)
    return Rotated(inner, inputs, rotation(basis.left, True, None, factor, device))


def _inside(stored: StoredLayer, parts: Parts) -> tuple[StoredLayer, Parts]:
    """The layer within."""
    within = nested_fields(RotatedLinear)["inner"].inside
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
    "salient_columns": _salient_columns,
}
"""By representation."""
