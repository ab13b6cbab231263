"""What tensor-parallel ranks keep of a layer, against rows and columns of its dense weight."""

import pytest
import torch
from formats.every_layer import ROTATED, UNROTATED, layer_of

from q2n.block_types import BLOCK_TYPES
from q2n.errors import InputError
from q2n.formats.native import Native
from q2n.formats.stored import StoredLayer
from q2n.formats.vllm.share import Share, dense_share, packed_share, require_divisible
from q2n.grids.fitted import block_grid
from q2n.layers.quantized import QuantizedLinear

SHAPE = (320, 96)  # trellis codes have two segments of 160 rows


def blocks(random, shape):
    weight = torch.randn(shape, generator=random)
    return block_grid(BLOCK_TYPES["q4_1"], weight, None, "layer").nearest()


def super_blocks(random, shape):
    weight = torch.randn(shape[0], 512, generator=random)
    return block_grid(BLOCK_TYPES["q4_k"], weight, None, "layer").nearest()


LAYERS = {**UNROTATED, "blocks": blocks, "super-blocks": super_blocks}


def shares(layer: QuantizedLinear, ranks: int, *, by: str, sizes: int = 1) -> list:
    """The weights of each rank."""
    rows, columns = layer.shape
    per_rank = rows // ranks // sizes
    outputs = [per_rank] * sizes if by == "rows" else [rows]
    inputs = columns if by == "rows" else columns // ranks
    stored, parts = StoredLayer.of(layer), Native().encode("layer", layer, torch.float32)
    return [
        packed_share(
            "layer",
            stored,
            parts,
            Share(outputs=outputs, inputs=inputs, rank=rank, ranks=ranks),
            torch.float32,
        )
        for rank in range(ranks)
    ]


def tokens(count: int, width: int) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("count", [3, 20])
@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_ranks_with_rows_give_parts_of_the_outputs(make, count: int) -> None:
    layer = layer_of(make, SHAPE)
    x = tokens(count, layer.shape[1])
    found = [weight.product(x, None) for (weight,) in shares(layer, 2, by="rows")]
    torch.testing.assert_close(torch.cat(found, 1), x @ layer.dequantize().T, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("count", [3, 20])
@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_ranks_with_columns_add_up(make, count: int) -> None:
    layer = layer_of(make, SHAPE)
    if layer.shape[1] % (3 * layer.scale_group) and layer.scale_group < layer.shape[1]:
        ranks = 2
    else:
        ranks = 3
    x = tokens(count, layer.shape[1])
    pairs = zip(x.chunk(ranks, 1), shares(layer, ranks, by="columns"), strict=True)
    total = sum(weight.product(piece, None) for piece, (weight,) in pairs)
    torch.testing.assert_close(total, x @ layer.dequantize().T, atol=1e-4, rtol=1e-4)


def test_an_output_fused_in_the_checkpoint_is_divided_output_by_output() -> None:
    """Rank 1 of 2 has the second halves of both."""
    layer = layer_of(LAYERS["uniform"], SHAPE)
    _, second = shares(layer, 2, by="rows", sizes=2)
    x, dense = tokens(3, SHAPE[1]), layer.dequantize()
    for weight, rows in zip(second, (dense[80:160], dense[240:320]), strict=True):
        torch.testing.assert_close(weight.product(x, None), x @ rows.T)


def test_heads_of_keys_are_shared_by_ranks() -> None:
    """Two heads, four ranks."""
    firsts = [Share(outputs=[64], inputs=9, rank=r, ranks=4).rows(128)[0].start for r in range(4)]
    assert firsts == [0, 0, 64, 64]


def test_a_dense_linear_is_divided_too() -> None:
    weight, x = tokens(6, 8), tokens(2, 4)
    (part,) = dense_share(weight, Share(outputs=[6], inputs=4, rank=1, ranks=2))
    torch.testing.assert_close(part.product(x, None), x @ weight[:, 4:].T)


def test_without_ranks_the_file_s_tensors_are_taken() -> None:
    layer = layer_of(LAYERS["uniform"], SHAPE)
    parts = Native().encode("layer", layer, torch.float32)
    share = Share(outputs=[320], inputs=96)
    (weight,) = packed_share("layer", StoredLayer.of(layer), parts, share, torch.float32)
    assert weight.rows.codes is parts["codes"]


@pytest.mark.parametrize("make", ROTATED.values(), ids=ROTATED)
def test_a_random_basis_is_refused_by_name_before_loading(make) -> None:
    stored = StoredLayer.of(layer_of(make, SHAPE))
    require_divisible("model.layers.3.o_proj", stored, 1)
    with pytest.raises(InputError, match=r"model.layers.3.o_proj .*mixes all .*--incoherence"):
        require_divisible("model.layers.3.o_proj", stored, 2)


@pytest.mark.parametrize(
    "make, ranks, by, what",
    [
        ("uniform", 4, "columns", "groups of 16 columns .* cut at column 24"),
        ("trellis", 4, "rows", "320 rows cannot be cut at rows 0 and 80"),
        ("super-blocks", 4, "columns", "256 columns cannot be cut at column 128"),
        ("blocks", 2, "columns", "cut at column 48"),
    ],
)
def test_where_a_layer_cannot_be_cut_is_said(make: str, ranks: int, by: str, what: str) -> None:
    with pytest.raises(InputError, match=f"layer cannot be divided among {ranks} ranks: .*{what}"):
        shares(layer_of(LAYERS[make], SHAPE), ranks, by=by)


def test_sizes_that_do_not_come_out_even_are_refused() -> None:
    with pytest.raises(InputError, match="parts of 7 for 2 ranks"):
        Share(outputs=[7], inputs=9, ranks=2).rows(15)
    with pytest.raises(InputError, match=r"100 rows are not 2 times \(20, 20\)"):
        Share(outputs=[20, 20], inputs=9, ranks=2).rows(100)
