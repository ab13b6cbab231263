"""Which implementation of an operation runs: chosen here and nowhere else.

Every operation has a reference in plain torch, which runs on any device and defines the result.
Faster implementations are listed by the type of device that they serve:

    operation           cpu                      cuda
    round_columns       round_columns_numba      round_columns_triton
      of trellis codes  round_to_trellis_numba   round_to_trellis_triton
    scale_zero_search   scale_zero_search_numba  scale_zero_search_triton
    weighted_error      weighted_error_numba     weighted_error_triton
    level_moments       level_moments_numba      level_moments_triton
    nearest_exl3_codes  nearest_codes_numba      nearest_codes_triton
    packed_product      product_numba            product_triton
    packed_rows         rows_numba
    unpack              unpack_numba
    kronecker_product   kronecker_numba

The last three are a few passes over memory, or matrix products, in plain torch: on a GPU a kernel
of our own would gain little where they are used. Coordinate descent is a column sweep again
(coordinate_descent.py) and has no loop of its own.

Devices without an entry get the reference. So do all of them with `Q2N_KERNELS=reference` in the
environment, to tell whether a kernel is at fault.

To add an implementation, write it beside its reference with the same signature and list it here;
tests/kernels/test_dispatch.py then runs it on the cases of its operation.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, ParamSpec, TypeVar

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from q2n.errors import InputError
from q2n.kernels.column_rounding import (
    round_columns_numba,
    round_columns_reference,
    round_columns_triton,
)
from q2n.kernels.exl3_search import (
    nearest_codes_numba,
    nearest_codes_reference,
    nearest_codes_triton,
)
from q2n.kernels.kronecker_product import kronecker_numba, kronecker_reference
from q2n.kernels.level_moments import (
    level_moments_numba,
    level_moments_reference,
    level_moments_triton,
)
from q2n.kernels.packed_rows import (
    product_numba,
    product_reference,
    rows_numba,
    rows_reference,
)
from q2n.kernels.packed_triton import product_triton
from q2n.kernels.rounding_rules import BlockRule, CodebookRule, Rule, SplitRule, UniformRule
from q2n.kernels.scale_zero_search import (
    scale_zero_search_numba,
    scale_zero_search_reference,
    scale_zero_search_triton,
)
from q2n.kernels.trellis_search import (
    TrellisRule,
    round_to_trellis_numba,
    round_to_trellis_triton,
)
from q2n.kernels.unpack import unpack_numba, unpack_reference
from q2n.kernels.weighted_error import (
    weighted_error_numba,
    weighted_error_reference,
    weighted_error_triton,
)

_VARIABLE = "Q2N_KERNELS"

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Operation(Generic[Arguments, Result]):
    """Implementations of one computation. All are pure: they change none of their arguments."""

    reference: Callable[Arguments, Result]
    """Plain torch, on any device."""
    fast: Mapping[str, Callable[Arguments, Result]]
    """By type of device, as torch names it."""

    def __call__(self, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        """The result of the implementation for the device of the first argument, a tensor.

        Of several GPUs that device is the current one meanwhile: Triton starts a kernel on the
        current one, wherever its arguments are.

        Raises:
            InputError: `Q2N_KERNELS` has an unknown value.
        """
        tensor = args[0]
        assert isinstance(tensor, Tensor)
        implementation = self.implementation(tensor.device)
        if not tensor.is_cuda:
            return implementation(*args, **kwargs)
        with torch.cuda.device(tensor.device):
            return implementation(*args, **kwargs)

    def implementation(self, device: torch.device) -> Callable[Arguments, Result]:
        """What runs on this device. Raises as a call."""
        if _only_references():
            return self.reference
        return self.fast.get(device.type, self.reference)


def _only_references() -> bool:
    value = os.environ.get(_VARIABLE, "")
    if value not in ("", "reference"):
        raise InputError(f"{_VARIABLE} must be 'reference' or unset, got {value!r}")
    return value == "reference"


Rounding = Operation[..., tuple[Tensor, Tensor]]

scale_zero_search = Operation(
    scale_zero_search_reference, {"cpu": scale_zero_search_numba, "cuda": scale_zero_search_triton}
)
weighted_error = Operation(
    weighted_error_reference, {"cpu": weighted_error_numba, "cuda": weighted_error_triton}
)
level_moments = Operation(
    level_moments_reference, {"cpu": level_moments_numba, "cuda": level_moments_triton}
)
unpack = Operation(unpack_reference, {"cpu": unpack_numba})
packed_product = Operation(product_reference, {"cpu": product_numba, "cuda": product_triton})
packed_rows = Operation(rows_reference, {"cpu": rows_numba})
kronecker_product = Operation(kronecker_reference, {"cpu": kronecker_numba})
nearest_exl3_codes = Operation(
    nearest_codes_reference, {"cpu": nearest_codes_numba, "cuda": nearest_codes_triton}
)

_by_weight: Rounding = Operation(
    round_columns_reference, {"cpu": round_columns_numba, "cuda": round_columns_triton}
)
_by_sequence: Rounding = Operation(
    round_columns_reference, {"cpu": round_to_trellis_numba, "cuda": round_to_trellis_triton}
)
_by_reference: Rounding = Operation(round_columns_reference, {})

ROUNDING: Mapping[type[Rule], Rounding] = {
    UniformRule: _by_weight,
    BlockRule: _by_weight,
    CodebookRule: _by_weight,
    SplitRule: _by_weight,
    TrellisRule: _by_sequence,
}
"""The rounding of columns to each type of rule. A rule that is not listed gets the reference."""


def round_columns(
    target: Float[Tensor, "columns out"],
    weight: Float[Tensor, "columns out"],
    matrix: Float[Tensor, "columns columns"],
    rule: Rule,
) -> tuple[UInt8[Tensor, "columns out"], Float[Tensor, "columns out"]]:
    """Codes of the columns of a block and their errors; see `round_columns_reference`. The type of
    the rule chooses the operation. Raises as `Operation`."""
    return ROUNDING.get(type(rule), _by_reference)(target, weight, matrix, rule)
