import pytest

from q2n.errors import InputError
from q2n.formats import FORMATS
from q2n.formats.choice import choose_format, formats_for
from q2n.grids.affine import AffineForm
from q2n.grids.quantized import Form
from q2n.methods.nullspace import NullSpace
from q2n.methods.rtn import RTN


def test_every_format_holds_a_uniform_grid() -> None:
    form = NullSpace(inner=RTN(bits=3, group_size=64)).form
    assert form == AffineForm(bits=3, group_size=64)
    assert formats_for(form) == list(FORMATS)
    assert choose_format("gptq_v2", "rtn", form) is FORMATS["gptq_v2"]


@pytest.mark.parametrize("name", ["compressed-tensors", "gptq_v2"])
def test_what_has_no_place_is_refused_with_those_that_have(name: str) -> None:
    with pytest.raises(InputError) as caught:
        choose_format(name, "leanquant", Form(kind="codebook"))
    assert str(caught.value) == (
        f"{name} cannot hold what leanquant stores (codebook layers); "
        "formats that can: native, dequantized"
    )
    assert choose_format("native", "leanquant", Form(kind="codebook")) is FORMATS["native"]


@pytest.mark.parametrize("name", ["compressed-tensors", "gptq_v2", "dequantized"])
def test_weights_alone_do_not_hold_what_a_model_does_online(name: str) -> None:
    form = AffineForm(bits=4, group_size=-1, online=True)
    with pytest.raises(InputError, match="while the model runs.*formats that can: native$"):
        choose_format(name, "quarot", form)
    assert formats_for(form) == ["native"]
