"""What a representation gets from its fields alone."""

from dataclasses import dataclass
from typing import ClassVar, Self

import pytest
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from q2n.layers import REPRESENTATIONS
from q2n.layers.fields import nested, packed
from q2n.layers.quantized import QuantizedLinear

CODES = torch.tensor([[0, 1, 2, 3], [3, 2, 1, 0], [1, 1, 1, 3]], dtype=torch.uint8)
ROWS, COLUMNS = CODES.shape


@dataclass(frozen=True, kw_only=True, eq=False)
class Steps(QuantizedLinear):
    """Every kind of field; weights `scale * (code - middle)`, with a shift where there is one."""

    kind: ClassVar[str] = "steps"

    codes: UInt8[Tensor, "out in"] = packed("width")
    sign: Bool[Tensor, " in"] = packed(1)
    scale: Float[Tensor, " out"]
    shift: Float[Tensor, " out"] | None = None
    exceptions: UInt8[Tensor, " any"] | None = packed("width", default=None)
    width: int
    middle: float = 1.5

    def dequantize(self) -> Tensor:
        weight = self.scale.float()[:, None] * (self.codes - self.middle)
        weight = torch.where(self.sign, -weight, weight)
        return weight if self.shift is None else weight + self.shift.float()[:, None]

    def scale_rows(self, alpha: Tensor) -> Self:
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True, eq=False)
class Twice(QuantizedLinear):
    """A layer of any kind plus one of a fixed kind, whose names are not prefixed."""

    kind: ClassVar[str] = "twice"

    coarse: QuantizedLinear = nested(prefix="coarse_")
    fine: Steps = nested(Steps, prefix="")
    seed: int

    def dequantize(self) -> Tensor:
        return self.coarse.dequantize() + self.fine.dequantize()

    def scale_rows(self, alpha: Tensor) -> Self:
        raise NotImplementedError

    @property
    def metadata_bits(self) -> int:
        return super().metadata_bits + 64


def steps(**options) -> Steps:
    sign = torch.tensor([True, False, False, True])
    scale = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float16)
    return Steps(codes=CODES, sign=sign, scale=scale, width=2, **options)


def shifted() -> Steps:
    return steps(shift=torch.ones(ROWS), exceptions=CODES[0], middle=2.0)


def test_each_field_is_stored_by_what_it_holds():
    layer = steps()
    assert list(layer.tensors()) == ["codes", "sign", "scale"]
    assert layer.widths == {"codes": 2, "sign": 1}
    assert layer.metadata() == {"width": 2, "middle": 1.5}
    assert layer.shape == (ROWS, COLUMNS)
    full = shifted()
    assert list(full.tensors()) == ["codes", "sign", "scale", "shift", "exceptions"]
    assert full.widths == {"codes": 2, "sign": 1, "exceptions": 2}


def test_bits_are_counted_packed_or_by_dtype():
    assert steps().stored_bits == 2 * 12 + 4 + 16 * ROWS
    assert shifted().stored_bits == 2 * 12 + 4 + 16 * ROWS + 32 * ROWS + 2 * 4
    assert steps().bits_per_weight == (24 + 4 + 48) / 12


def twice(coarse: QuantizedLinear) -> Twice:
    return Twice(coarse=coarse, fine=steps(), seed=7)


@pytest.fixture
def table(monkeypatch):
    """The one table of representations, with those of this file."""
    for representation in (Steps, Twice):
        monkeypatch.setitem(REPRESENTATIONS, representation.kind, representation)


@pytest.mark.parametrize(
    "make",
    [steps, shifted, lambda: twice(shifted()), lambda: twice(twice(steps()))],
    ids=["plain", "optional", "nested", "nested twice"],
)
def test_tensors_and_metadata_rebuild_the_layer(make, table):
    layer = make()
    again = type(layer).from_tensors(layer.tensors(), layer.metadata())
    assert torch.equal(again.dequantize(), layer.dequantize())
    assert again.metadata() == layer.metadata() and again.widths == layer.widths
    assert again.tensors().keys() == layer.tensors().keys()


def test_layers_within_are_prefixed_and_counted(table):
    layer = twice(twice(shifted()))
    assert {"coarse_coarse_shift", "coarse_codes", "codes"} <= layer.tensors().keys()
    assert layer.metadata()["coarse"] == "twice" and layer.metadata()["coarse_seed"] == 7
    assert "fine" not in layer.metadata()
    assert layer.widths["coarse_coarse_exceptions"] == 2
    assert layer.shape == (ROWS, COLUMNS)
    assert layer.stored_bits == shifted().stored_bits + 2 * (steps().stored_bits + 64)


def test_all_tensors_move_and_the_record_stays():
    layer = twice(twice(shifted())).with_record(rank=3).to(torch.device("meta"))
    assert all(tensor.is_meta for tensor in layer.tensors().values())
    assert layer.record == {"rank": 3} and layer.coarse.seed == 7


def test_a_tensor_that_is_missing_is_named():
    tensors = steps().tensors()
    del tensors["scale"]
    with pytest.raises(TypeError, match="scale"):
        Steps.from_tensors(tensors, steps().metadata())


def test_a_weight_without_a_field_of_its_shape():
    @dataclass(frozen=True, kw_only=True, eq=False)
    class Vectors(QuantizedLinear):
        kind: ClassVar[str] = "vectors"
        codes: UInt8[Tensor, "out vectors"] = packed(8)

        def dequantize(self) -> Tensor:
            raise NotImplementedError

        def scale_rows(self, alpha: Tensor) -> Self:
            raise NotImplementedError

    with pytest.raises(TypeError, match="Vectors has no field of shape 'out in'.*`shape`"):
        _ = Vectors(codes=CODES).shape


def test_the_table_holds_each_kind_once():
    assert all(REPRESENTATIONS[kind].kind == kind for kind in REPRESENTATIONS)
    assert QuantizedLinear.representations is REPRESENTATIONS
