import pytest
import torch

from q2n.errors import InputError
from q2n.models.devices import parse_dtype, requested_dtype


@pytest.mark.parametrize("name", ["auto", None])
def test_auto_leaves_the_dtype_to_the_checkpoint(name):
    assert requested_dtype(name) is None


def test_dtypes_by_name():
    assert requested_dtype("bfloat16") is parse_dtype("bfloat16") is torch.bfloat16
    with pytest.raises(InputError, match="'int8' is not one of auto, float32"):
        requested_dtype("int8")
