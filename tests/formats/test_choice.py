import pytest

from q2n.errors import InputError
from q2n.formats import FORMATS
from q2n.formats.choice import choose_format, formats_for
from q2n.layers.blocks import BlockStorage
from q2n.layers.quantized import StorageSpec
from q2n.layers.uniform import UniformStorage
from q2n.methods.rtn import RTN
from q2n.wrappers.nullspace import NullSpace


def test_all_formats_but_two_hold_a_uniform_grid() -> None:
    storage = NullSpace(inner=RTN(bits=3, group_size=64)).storage
    assert storage == UniformStorage(bits=3, group_size=64)
    assert formats_for(storage) == [name for name in FORMATS if name not in ("gguf", "exl3")]
    assert choose_format("gptq_v2", "rtn", storage) is FORMATS["gptq_v2"]


@pytest.mark.parametrize("name", ["compressed-tensors", "gptq_v2"])
def test_refusal_names_the_formats_that_fit(name: str) -> None:
    with pytest.raises(InputError) as caught:
        choose_format(name, "leanquant", StorageSpec(kind="codebook"))
    assert str(caught.value) == (
        f"{name} cannot hold what leanquant stores (codebook layers); "
        "formats that can: native, dequantized"
    )
    assert choose_format("native", "leanquant", StorageSpec(kind="codebook")) is FORMATS["native"]


@pytest.mark.parametrize("name", ["compressed-tensors", "gptq_v2", "dequantized"])
def test_runtime_work_needs_the_native_format(name: str) -> None:
    storage = UniformStorage(bits=4, group_size=-1, runtime="--rotate hadamard")
    with pytest.raises(InputError, match="runs: --rotate hadamard.; formats that can: native$"):
        choose_format(name, "quarot", storage)
    assert formats_for(storage) == ["native"]


STORAGE = UniformStorage(bits=4, group_size=64)


@pytest.mark.parametrize("name", ["compressed-tensors", "gptq_v2", "dequantized"])
def test_formats_without_packed_tables_name_those_that_have_them(name: str) -> None:
    with pytest.raises(InputError) as caught:
        choose_format(name, "rtn", STORAGE, outside_bits=6)
    assert str(caught.value) == (
        f"{name} holds embeddings and head in 16 bits or more; of the formats that hold what rtn "
        "stores, these hold them in 6 bits: mlx, native"
    )


def test_packed_tables_beside_what_only_one_format_holds() -> None:
    with pytest.raises(InputError, match="exl3 holds embeddings.* in 8 bits: native$"):
        choose_format("exl3", "exl3", StorageSpec(kind="trellis_tiles"), outside_bits=8)
    chosen = choose_format("gguf", "rtn", BlockStorage(block_type="q4_0"), outside_bits=4)
    assert chosen == FORMATS["gguf"].storing_outside("iq4_nl")
    assert choose_format("mlx", "rtn", STORAGE, outside_bits=4) != FORMATS["mlx"]
