"""Rows that are looked up in a packed table, against all of its rows."""

import pytest
import torch
from formats.tiny_models import random_layer
from hypothesis import given, settings
from hypothesis import strategies as st

from q2n.formats.packing import pack_all
from q2n.kernels.packed_table import rows_of_table


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_rows_in_any_order(data: st.DataObject) -> None:
    """Rows and groups that begin anywhere in a word; the last row, whose last code ends the words;
    a row that is asked for twice."""
    bits, rows = data.draw(st.integers(1, 8)), data.draw(st.integers(1, 9))
    columns, size = data.draw(st.integers(1, 70)), data.draw(st.integers(1, 40))
    size, symmetric = min(size, columns), data.draw(st.booleans())
    layer = random_layer((rows, columns), bits, size, symmetric, torch.float16)
    chosen = torch.tensor(
        data.draw(st.lists(st.integers(0, rows - 1), max_size=12)), dtype=torch.int32
    )
    found = rows_of_table(
        chosen,
        pack_all(layer.codes, bits),
        layer.scale,
        None if symmetric else pack_all(layer.zero, bits),
        bits=bits,
        columns=columns,
        group_size=size,
    )
    assert torch.equal(found, layer.dequantize()[chosen.long()])


@pytest.mark.parametrize("shape", [(0,), (1,)])
def test_no_rows_and_one(shape: tuple[int, ...]) -> None:
    layer = random_layer((3, 8), 4, 8, True, torch.bfloat16)
    none = torch.zeros(shape, dtype=torch.int64)
    found = rows_of_table(
        none, pack_all(layer.codes, 4), layer.scale, None, bits=4, columns=8, group_size=8
    )
    assert found.shape == (*shape, 8) and found.dtype == torch.float32
