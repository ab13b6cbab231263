"""Weights too large for the dtype in which numbers are stored: every method names the layer."""

from dataclasses import replace

import pytest
import torch
from methods.test_dead_columns import EVERY, layer

from q2n.errors import NumericalError
from q2n.methods.ptq161 import PTQ161

METHODS = {
    **EVERY,
    "ptq161": PTQ161(),
    "pbllm xnor": replace(EVERY["pbllm"], low="xnor"),
    "pbllm sign": replace(EVERY["pbllm"], low="sign"),
}


@pytest.mark.parametrize("name", METHODS)
def test_nothing_infinite_is_stored(name) -> None:
    method = METHODS[name]
    problem = layer(columns=[], method=method)
    problem = replace(problem, weight=3e8 * problem.weight, scale_dtype=torch.float16)
    with pytest.raises(NumericalError, match=r"h\.0\.up: .*torch.float16.*bfloat16"):
        method.quantize(problem)
