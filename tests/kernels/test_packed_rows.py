"""Products with packed rows, of every representation, against the rows in plain torch."""

import ctypes
from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from q2n.formats.packing import pack_all
from q2n.kernels import dispatch, torch_threads
from q2n.kernels.kronecker_product import KroneckerProduct, kronecker_columns
from q2n.kernels.packed_levels import LevelRows
from q2n.kernels.packed_partly_binary import PartlyBinaryRows
from q2n.kernels.packed_rows import PackedRows, product_reference, rows_reference
from q2n.kernels.packed_trellis import TrellisRows
from q2n.kernels.packed_uniform import UniformRows
from q2n.kernels.stored_rows import codes_of_rows, stored_codes

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}
"""Of a result, relative to the sum of the sizes of its terms."""
SHAPES = [(1, 1), (1, 37), (5, 64), (7, 100), (33, 65), (170, 20), (333, 61)]
"""One weight, one row, whole words, rows that begin anywhere in a word, several pieces of work and
segments of a trellis."""


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) + 0.5


def codes(bits: int, *shape: int, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2**bits, shape, dtype=torch.uint8, generator=generator)


def uniform(
    shape: tuple[int, int],
    bits: int,
    size: int = 32,
    symmetric: bool = False,
    dtype: torch.dtype = torch.float16,
) -> UniformRows:
    rows, columns = shape
    ends = torch.arange(size, columns + size, size).clamp(max=columns)
    zero = None if symmetric else pack_all(codes(bits, rows, len(ends), seed=2), bits)
    scale = (random(rows, len(ends)) - 0.9).to(dtype)
    return UniformRows(shape, bits, pack_all(codes(bits, *shape), bits), scale, zero, ends)


def levels(shape: tuple[int, int], bits: int) -> LevelRows:
    table = random(1, 2**bits) - 1
    return LevelRows(shape, bits, pack_all(codes(bits, *shape), bits), table, random(shape[0]))


def codebook(shape: tuple[int, int], bits: int) -> LevelRows:
    tables = random(shape[0], 2**bits) - 1
    return LevelRows(shape, bits, pack_all(codes(bits, *shape), bits), tables, None)


def trellis(shape: tuple[int, int], bits: int) -> TrellisRows:
    return TrellisRows(shape, bits, pack_all(codes(bits, *shape), bits), random(shape[0]))


def partly_binary(
    shape: tuple[int, int], bits: int, low_bits: int = 1, size: int = 16, mean: bool = True
) -> PartlyBinaryRows:
    low = random(*shape) < 1.3
    groups = -(-shape[1] // size)
    count = low.sum(1).cumsum(0)
    return PartlyBinaryRows(
        shape=shape,
        low=pack_all(low.to(torch.uint8), 1),
        low_codes=pack_all(codes(low_bits, int(count[-1])), low_bits) if low_bits else None,
        low_bits=low_bits,
        high_codes=pack_all(codes(bits, low.numel() - int(count[-1])), bits),
        high_bits=bits,
        starts=torch.cat([count.new_zeros(1), count]),
        magnitude=random(shape[0], groups) if low_bits else None,
        mean=random(shape[0], groups) - 1 if low_bits and mean else None,
        scale=random(shape[0]) / 2**bits,
        zero=codes(bits, shape[0]),
        group_size=size,
    )


CASES = {
    **{f"uniform {b}": (uniform, {"bits": b}) for b in range(1, 9)},
    **{
        f"uniform {b}, {dtype}": (uniform, {"bits": b, "dtype": dtype, "symmetric": True})
        for b, dtype in ((2, torch.bfloat16), (3, torch.float32), (4, torch.bfloat16))
    },
    "groups of 7": (uniform, {"bits": 3, "size": 7}),
    "one group": (uniform, {"bits": 4, "size": 1000}),
    **{f"levels {b}": (levels, {"bits": b}) for b in (1, 2, 3, 4, 8)},
    **{f"codebook {b}": (codebook, {"bits": b}) for b in (1, 2, 3, 4, 6)},
    **{f"trellis {b}": (trellis, {"bits": b}) for b in (2, 3, 4)},
    "binary": (partly_binary, {"bits": 8}),
    "binary, no mean": (partly_binary, {"bits": 8, "mean": False}),
    "two bits below": (partly_binary, {"bits": 4, "low_bits": 2}),
    "zeros below": (partly_binary, {"bits": 3, "low_bits": 0, "size": 1000}),
}
EVERY = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def assert_products(
    weight: PackedRows, x: torch.Tensor, bias: torch.Tensor | None, device: str = "cpu"
) -> None:
    """Of the implementation for a device, to the rounding of the dtype of x."""
    dense = weight.dense(0, weight.shape[0]).double()
    expected, size = x.double() @ dense.T, x.double().abs() @ dense.T.abs()
    if bias is not None:
        expected, size = expected + bias.double(), size + bias.double().abs()
    given = [None if tensor is None else tensor.to(device) for tensor in (x, bias)]
    result = dispatch.packed_product.fast[device](given[0], moved(weight, device), given[1]).cpu()
    assert result.dtype == x.dtype and result.shape == expected.shape
    assert ((result.double() - expected).abs() <= TOLERANCE[x.dtype] * size).all()


def moved(weight: PackedRows, device: str) -> PackedRows:
    parts = {x.name: getattr(weight, x.name) for x in fields(weight) if x.name != "ends"}
    tensors = {k: x.to(device) for k, x in parts.items() if isinstance(x, torch.Tensor)}
    return replace(weight, **tensors)


@pytest.mark.gpu
@EVERY
@pytest.mark.parametrize("shape", SHAPES)
def test_products_on_a_gpu_are_those_of_the_dense_rows(case, shape):
    make, options = case
    weight = make(shape, **options)
    for tokens, dtype in ((1, torch.float32), (3, torch.bfloat16), (8, torch.float16)):
        x = (random(tokens, shape[1], seed=3) - 1).to(dtype)
        assert_products(weight, x, random(shape[0], seed=4).to(dtype), "cuda")


@EVERY
@pytest.mark.parametrize("shape", SHAPES)
def test_products_are_those_of_the_dense_rows(case, shape):
    make, options = case
    weight = make(shape, **options)
    for tokens in (1, 2, 8):
        for dtype in DTYPES:
            x = (random(tokens, shape[1], seed=5) - 1).to(dtype)
            assert_products(weight, x, random(shape[0]) if tokens == 2 else None)


@EVERY
@pytest.mark.parametrize("shape", SHAPES)
def test_rows_are_written_out_bit_for_bit(case, shape):
    make, options = case
    weight = make(shape, **options)
    rows = shape[0]
    for dtype in DTYPES:
        like = torch.empty(1, shape[1], dtype=dtype)
        for first, last in ((0, rows), (rows // 2, rows), (rows // 3, rows // 2 + 1)):
            expected = rows_reference(like, weight, first, last)
            assert torch.equal(
                dispatch.packed_rows.fast["cpu"](like, weight, first, last), expected
            )


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 90),
    bits=st.integers(1, 8),
    size=st.integers(1, 100),
    tokens=st.integers(1, 8),
)
def test_any_shape_of_a_uniform_grid(rows, columns, bits, size, tokens):
    weight = uniform((rows, columns), bits, size=size)
    assert_products(weight, random(tokens, columns) - 1, None)


def test_a_view_of_tokens_is_read_right():
    weight = uniform((9, 40), 4)
    x = random(40, 3, seed=7).T
    assert not x.is_contiguous()
    expected = product_reference(x, weight, None)
    torch.testing.assert_close(dispatch.packed_product(x, weight, None), expected)


@EVERY
def test_threads_share_the_rows(case, monkeypatch):
    """Three threads, those of torch and those of Python."""
    make, options = case
    weight, x = make((333, 61), **options), random(1, 61)
    alone = dispatch.packed_product(x, weight, None)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert torch.equal(dispatch.packed_product(x, weight, None), alone)
        monkeypatch.setattr(torch_threads, "_team", lambda: torch_threads._by_python)
        assert torch.equal(dispatch.packed_product(x, weight, None), alone)
    finally:
        torch.set_num_threads(before)


def test_torch_has_the_library_of_its_threads():
    assert torch_threads._team() is not torch_threads._by_python or not hasattr(ctypes, "CDLL")


@pytest.mark.parametrize("bits", range(1, 9))
def test_codes_of_rows_are_cut_out_of_the_stream(bits):
    all_codes = codes(bits, 9, 23)
    words = pack_all(all_codes, bits)
    assert torch.equal(codes_of_rows(words, bits, 4, 7, 23), all_codes[4:7])
    assert torch.equal(stored_codes(words, bits, 100, 101), all_codes.flatten()[100:101])
    assert not len(stored_codes(words, bits, 50, 50))


def kronecker(p: int, q: int, scaled: bool) -> KroneckerProduct:
    def order(seed: int) -> torch.Tensor:
        return torch.randperm(p * q, generator=torch.Generator().manual_seed(seed)).int()

    ends = (random(p * q, seed=3), random(p * q, seed=4)) if scaled else (None, None)
    return KroneckerProduct(random(p, p) - 1, random(q, q, seed=2) - 1, order(0), order(1), *ends)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("sizes", [(1, 1), (7, 1), (1, 9), (5, 6), (24, 24), (13, 130), (48, 32)])
def test_kronecker_products_of_few_and_of_many_tokens(sizes, scaled):
    product = kronecker(*sizes, scaled)
    p, q = sizes
    matrix = torch.kron(product.left, product.right.T.contiguous()).double()
    for tokens in (1, 3, 20):
        x = random(tokens, p * q, seed=6) - 1
        divided = x.double() if product.divisor is None else x.double() / product.divisor
        expected = (divided[:, product.into.long()] @ matrix.T)[:, product.out.long()]
        expected *= 1 if product.factor is None else product.factor
        close = {"rtol": 1e-4, "atol": 1e-4}
        for function in (
            dispatch.kronecker_product.reference,
            dispatch.kronecker_product.fast["cpu"],
        ):
            for dtype, to in (
                (torch.float32, close),
                (torch.bfloat16, {"rtol": 1e-2, "atol": 1e-2}),
            ):
                result = function(x, product, dtype)
                torch.testing.assert_close(result, expected.to(dtype), **to)
        columns = kronecker_columns(x.T.clone(memory_format=torch.contiguous_format), product)
        torch.testing.assert_close(columns.T, expected.float(), **close)


def test_kronecker_products_read_bfloat16():
    product, x = kronecker(6, 4, True), (random(2, 24) - 1).bfloat16()
    expected = dispatch.kronecker_product.reference(x, product, torch.float32)
    torch.testing.assert_close(dispatch.kronecker_product(x, product, torch.float32), expected)
