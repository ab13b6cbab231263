import pytest
import torch

from q2n.errors import InputError
from q2n.models.devices import parse_device, parse_dtype, requested_dtype


@pytest.mark.parametrize("name", ["auto", None])
def test_auto_leaves_the_dtype_to_the_checkpoint(name):
    assert requested_dtype(name) is None


def test_dtypes_by_name():
    assert requested_dtype("bfloat16") is parse_dtype("bfloat16") is torch.bfloat16
    with pytest.raises(InputError, match="'int8' is not one of auto, half, float32"):
        requested_dtype("int8")


@pytest.mark.parametrize(
    "name", ["", "meta", "garbage", "cuda:99", "cuda:-1", "cuda:" + "9" * 30, "a\0b", "xla", "hpu"]
)
def test_a_device_that_does_not_compute_gets_one_line(name):
    with pytest.raises(InputError, match="device .* cannot be used") as refused:
        parse_device(name)
    assert "\n" not in str(refused.value) and "torch finds here: cpu" in str(refused.value)


def test_the_device_of_every_machine():
    assert parse_device("cpu") == torch.device("cpu") == parse_device(torch.device("cpu"))
