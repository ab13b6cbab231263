"""Ranges of a block learned on its output: OmniQuant's loop, and what it never makes worse."""

import pytest
import torch
from oracles.omniquant import fit_block
from refit.test_block import OneBlock

from q2n.errors import NumericalError
from q2n.grids.granularity import PerGroup
from q2n.grids.learned_range import LearnedRange, RangeFit
from q2n.grids.uniform import UniformGrid
from q2n.models.targets import targets_in
from q2n.refit.block import Window
from q2n.refit.ranges import learn_ranges

pytestmark = pytest.mark.slow
GRID = UniformGrid(bits=2, granularity=PerGroup(32))


@pytest.fixture(autouse=True)
def _exact(monkeypatch):
    """Matrix products in float32, on a machine that is fast in bfloat16 too."""
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)


def forms_of(one: OneBlock, stored: torch.dtype = torch.float32) -> dict[str, LearnedRange]:
    return {
        name: LearnedRange(GRID, target.weight(), stored, name)
        for name, target in targets_in(one.block).items()
    }


def learned(one: OneBlock, *, own=None, stored=torch.float32, **changes):
    """The ranges of a block, and the forms that were fitted."""
    forms = forms_of(one, stored)

    def window(number):
        inputs, full, _ = one.window(number)
        return Window(inputs, full, None if own is None else own[number : number + 1])

    options = {"epochs": 2, "rate": 0.01, "both_targets": own is not None, **changes}
    fit = RangeFit(grid=GRID, **options)
    return learn_ranges(one.block, forms, window, one.count, fit, name="blocks.1"), forms


@pytest.mark.parametrize("both", [False, True])
def test_logits_are_those_of_omniquants_loop(both):
    one = OneBlock(count=3)
    noise = torch.randn(one.target.shape, generator=torch.Generator().manual_seed(4))
    own = one.target + 0.1 * noise if both else None
    clipping, change = learned(one, own=own)[0]
    targets = targets_in(one.block)
    inputs = [one.window(number).inputs for number in range(3)]
    expected, losses = fit_block(
        one.block,
        {targets[name].parameter: targets[name].weight() for name in targets},
        [lambda call, x=x: x.run(call).hidden for x in inputs],
        one.target.split(1),
        own.split(1) if both else None,
        bits=2,
        group_size=32,
        epochs=2,
        rate=0.01,
    )
    assert len(losses) == 6 and change[1] < change[0]
    for name, shares in clipping.items():
        for share, logits in zip(shares, expected[targets[name].parameter], strict=True):
            # Adam divides by a root of the gradient: its float32 errors enter relative to a rate
            torch.testing.assert_close(share, logits.sigmoid(), rtol=0, atol=1e-5)


def test_a_fit_that_rises_is_taken_back():
    one = OneBlock(count=3)
    (clipping, (before, after)), forms = learned(one, rate=1e3)
    assert after > before
    for name, form in forms.items():
        assert (form.low_logit == 4).all() and (form.high_logit == 4).all()
        assert torch.equal(clipping[name].low, form.low_logit.sigmoid())


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("fast", [False, True])
def test_ranges_are_stored_in_any_dtype_whatever_the_products_are_in(monkeypatch, stored, fast):
    """On a processor with fast products in bfloat16, those of the block are in it; scales are
    computed outside, as autocast knows no float16 on a CPU."""
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: fast)
    (_, (before, after)), _ = learned(OneBlock(count=3), stored=stored)
    assert after < before


def test_the_block_stays_in_full_precision():
    one = OneBlock(count=3)
    before = {name: tensor.clone() for name, tensor in one.block.state_dict().items()}
    learned(one, epochs=1)
    assert all(torch.equal(before[name], x) for name, x in one.block.state_dict().items())


def test_a_nan_names_block_and_flag():
    one = OneBlock(count=3)
    one.target = one.target * float("nan")
    with pytest.raises(NumericalError, match=r"blocks\.1: .* nan; use --clip minmax"):
        learned(one)
