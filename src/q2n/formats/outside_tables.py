"""Which tables a model has, and their rounding.

Each group of columns (table_grid.py) gets the step and the zero point of the least squared error
(grids/weighted_range.py), and each number goes to its nearest level. No text is read for it. A head
that is the embeddings stays so: there is one table. What else embeds (positions, parts of an image)
stays as it is.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from q2n.errors import InputError
from q2n.formats.table_grid import TableGrid
from q2n.grids.granularity import PerGroup
from q2n.grids.uniform import UniformGrid
from q2n.grids.weighted_range import fit_weighted
from q2n.layers.uniform import UniformLinear
from q2n.linalg.groups import in_groups
from q2n.models.model_source import ModelSource

_ENTRIES_AT_ONCE = 2**22


def tables_of(source: ModelSource) -> dict[str, tuple[int, int]]:
    """Shapes of a model's embeddings and, if it is another tensor, output head, by the names of
    their modules.

    Raises:
        InputError: one is of another kind than readers of packed tables know.
    """
    model, stored = source.skeleton(), set(source.names())
    holders = (model.get_input_embeddings(), model.get_output_embeddings())
    return {
        name: _shape(name, module)
        for name, module in model.named_modules()
        if module in holders and f"{name}.weight" in stored
    }


def round_table(
    table: Float[Tensor, "words width"], grid: TableGrid, dtype: torch.dtype, name: str
) -> UniformLinear:
    """The table `name` on a grid, with scales in `dtype`; some of its rows at a time.

    Raises:
        NumericalError: numbers that are not finite, or a scale that overflows `dtype`.
    """
    size = grid.group_size(table.shape[1])
    uniform = UniformGrid(bits=grid.bits, symmetric=grid.symmetric, granularity=PerGroup(size))
    portions = table.split(max(1, _ENTRIES_AT_ONCE // table.shape[1]))
    found = [_rounded(part.float(), uniform, size, dtype, name) for part in portions]
    codes, scale, zero = (torch.cat(parts) for parts in zip(*found, strict=True))
    return UniformLinear(
        codes=codes,
        scale=scale,
        zero=zero,
        bits=grid.bits,
        group_size=size,
        symmetric=grid.symmetric,
    )


def _rounded(
    rows: Float[Tensor, "words width"], grid: UniformGrid, size: int, dtype: torch.dtype, name: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, scales and zero points of some rows."""
    scale, zero = fit_weighted(grid, rows, torch.ones(rows.shape[1]), dtype, name)
    codes = grid.encode(in_groups(rows, size), scale.unsqueeze(2), zero.unsqueeze(2))
    return codes.flatten(1), scale, zero


def _shape(name: str, module: nn.Module) -> tuple[int, int]:
    if not isinstance(module, nn.Embedding | nn.Linear):
        raise InputError(
            f"{name} is a {type(module).__name__}, and packed tables are read in the place of "
            "nn.Embedding and nn.Linear only; leave out --outside-bits"
        )
    words, width = module.weight.shape
    return words, width
