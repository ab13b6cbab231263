"""The kernels for a GPU are compiled for one, which needs none.

The interpreter (test_triton_operations.py) is Python: it takes what the compiler refuses."""

from importlib.util import find_spec

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed"),
]
POINTERS = {
    **dict.fromkeys(("codes", "which"), "*u8"),
    **dict.fromkeys(("group", "zeros", "best"), "*i64"),
    "low": "*u8",
    "moments": "*fp64",
}
COUNTS = (
    *("columns", "rows", "groups", "size", "steps", "count", "top", "segments", "overlap"),
    *("low_top", "high_top", "blocks", "tried", "longest"),
)
"""Arguments that are integers; all others point to numbers of the kernel's dtype."""
TILE = {"COLUMNS": 128, "ROWS": 32}
SEARCH = {"ROWS": 16, "SIZE": 64}
WARPS = {"triton_columns": 1, "triton_trellis": 16}
KERNELS = [
    ("triton_columns", "_uniform", TILE, {"zero": "*u8"}),
    ("triton_columns", "_block", {**TILE, "EVEN": True}, {}),
    ("triton_columns", "_block", {**TILE, "EVEN": False}, {}),
    ("triton_columns", "_codebook", TILE, {}),
    ("triton_columns", "_split", TILE, {}),
    *(
        ("triton_trellis", "_kernel", {"BASE": b, "SHARED": p, "ROWS": 256, "LATER": 16}, {})
        for b, p in ((4, 1024), (8, 512), (16, 256))
    ),
    ("triton_searches", "_scale_zero", SEARCH, {"zero": "*i64"}),
    ("triton_searches", "_weighted_error", SEARCH, {}),
    ("triton_searches", "_moments", {**SEARCH, "EVEN": True}, {}),
    ("triton_searches", "_moments", {**SEARCH, "EVEN": False}, {}),
]


@pytest.mark.parametrize(("module", "name", "constants", "types"), KERNELS)
def test_the_kernel_compiles_without_fused_sums(module, name, constants, types):
    """A fused product and sum would round otherwise than the reference."""
    from importlib import import_module

    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = getattr(import_module(f"q2n.kernels.{module}"), name)
    types = {**dict.fromkeys(COUNTS, "i32"), **POINTERS, **types}
    signature = {
        x: "constexpr" if x in constants else types.get(x, "*fp32") for x in kernel.arg_names
    }
    places = {(kernel.arg_names.index(x),): value for x, value in constants.items()}
    source = ASTSource(fn=kernel, signature=signature, constexprs=places)
    options = {"enable_fp_fusion": False, "num_warps": WARPS.get(module, 4)}
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    assert "allow_reorder" not in compiled.asm["ttir"]  # no place of a smallest number is moved
    code = compiled.asm["ptx"]
    assert "ld.local" not in code  # the tile fits into registers
    if name != "_scale_zero":  # its logarithm is made of fused operations
        assert "fma.rn" not in code
