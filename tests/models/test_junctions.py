"""Junctions: found in any architecture, and a scale that moves through one changes nothing."""

from dataclasses import replace

import pytest
import torch
from mixtures import MIXTURES, tiny_mixture
from through_blocks import through_blocks
from tiny import ARCHITECTURES, CONVENTIONS, SHARED_KEYS, TRANSPOSED, tiny_model
from torch import nn

from q2n.models.blocks import BlockwiseModel
from q2n.models.calls import BlockCall, BlockInput, Hidden
from q2n.models.junction_search import find_junctions
from q2n.models.junctions import Junction, Source
from q2n.models.source import open_source
from q2n.models.targets import targets_in

TOKENS = torch.randint(3, 128, (1, 8), generator=torch.Generator().manual_seed(1))
EVERY = [*ARCHITECTURES, *CONVENTIONS, *TRANSPOSED, *MIXTURES]


def blocks_of(architecture, **options) -> BlockwiseModel:
    layers = 4 if architecture in SHARED_KEYS else 2
    make = tiny_mixture if architecture in MIXTURES else tiny_model
    model, generator = (
        make(architecture, layers=layers, **options),
        torch.Generator().manual_seed(4),
    )
    with torch.no_grad():  # biases and norms as after training, none at 0 or 1
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return BlockwiseModel(open_source(model))


def sources(model: BlockwiseModel, index: int = 0) -> dict[str, tuple | None]:
    """First reader of each junction of a block -> its source."""
    given, _ = list(through_blocks(model, TOKENS))[index]
    block = model.load_block(index)
    targets, _ = model.targets_of(index, block)
    found = find_junctions(block, targets, given, model.shared_in(index))
    return {
        x.readers[0]: x.source and (x.source.module, x.source.kind, x.source.offset) for x in found
    }


@pytest.mark.slow
@pytest.mark.parametrize("architecture", EVERY)
def test_moving_a_scale_leaves_the_function(architecture):
    model = blocks_of(architecture)
    generator = torch.Generator().manual_seed(2)
    for index, (given, output) in enumerate(through_blocks(model, TOKENS)):
        block = model.load_block(index)
        before = {name: x.clone() for name, x in block.named_parameters()}
        targets, _ = model.targets_of(index, block)
        found = find_junctions(block, targets, given, model.shared_in(index))
        assert all(torch.equal(x, before[name]) for name, x in block.named_parameters())
        assert {*targets} <= {name for junction in found for name in junction.readers}
        for junction in found:
            if junction.source is None:
                continue
            scale = torch.exp(torch.randn(junction.width, generator=generator))
            with torch.no_grad():
                for name, value in junction.scaled(block, junction.holdable(block, scale)):
                    block.get_parameter(name).copy_(value)
        changed = [n for n, x in block.named_parameters() if not torch.equal(x, before[n])]
        assert bool(changed) == any(x.source is not None for x in found)
        with torch.no_grad():
            again = given.run(block).hidden
        torch.testing.assert_close(again, output.hidden, rtol=1e-4, atol=1e-4)


def test_norms_and_the_linear_before_are_sources():
    assert sources(blocks_of("llama", num_key_value_heads=4)) == {
        "self_attn.q_proj": ("input_layernorm", "norm", 0.0),
        "self_attn.o_proj": ("self_attn.v_proj", "linear", 0.0),
        "mlp.gate_proj": ("post_attention_layernorm", "norm", 0.0),
        "mlp.down_proj": ("mlp.up_proj", "linear", 0.0),
    }


def test_heads_that_share_values_have_no_source():
    assert sources(blocks_of("llama"))["self_attn.o_proj"] is None


def test_norms_that_add_one_are_told_apart():
    found = sources(blocks_of("gemma2"))
    assert found["self_attn.q_proj"] == ("input_layernorm", "norm", 1.0)


def test_the_last_rows_of_a_fused_matrix_are_a_source():
    assert sources(blocks_of("gpt2"))["attn.c_proj"] == ("attn.c_attn", "linear", 0.0)
    found = sources(blocks_of("phi3"))
    assert found["mlp.down_proj"] == ("mlp.gate_up_proj", "linear", 0.0)


def test_a_nonlinearity_in_between_is_no_way():
    found = sources(blocks_of("gpt2"))
    assert found["mlp.c_proj"] is None and found["mlp.c_fc"] == ("ln_2", "norm", 0.0)
    assert sources(blocks_of("opt"))["fc2"] == ("fc1", "linear", 0.0)  # ReLU lets a scale pass


def test_a_residual_that_takes_the_norm_is_seen():
    assert sources(blocks_of("openai-gpt"))["mlp.c_fc"] is None


def test_routers_and_every_expert_read_the_norm():
    model = blocks_of("qwen2_moe")
    given, _ = next(through_blocks(model, TOKENS))
    block = model.load_block(0)
    targets, _ = model.targets_of(0, block)
    found = {x.readers[0]: x for x in find_junctions(block, targets, given)}
    norm = found["mlp.shared_expert.gate_proj"]
    experts = {f"mlp.experts.{e}.{part}_proj" for e in range(4) for part in ("gate", "up")}
    own = {"mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj", "mlp.shared_expert_gate"}
    assert {*norm.readers} == experts | own | {"mlp.gate"}
    assert norm.source is not None and norm.source.module == "post_attention_layernorm"
    down = found["mlp.experts.3.down_proj"]
    assert down.expert == 3 and down.source is not None
    assert down.source.module == "mlp.experts.3.up_proj"


def test_experts_whose_gate_adds_one_have_no_source():
    assert sources(blocks_of("gpt_oss"))["mlp.experts.0.down_proj"] is None


def test_values_for_later_blocks_do_not_change():
    """The last two blocks read the keys and values of the first two."""
    found = sources(blocks_of("gemma4_text", num_key_value_heads=4))
    assert found["self_attn.o_proj"] is None


class Doubled(nn.Module):
    """A block whose norm is read by a linear, and by nothing or by a residual too."""

    def __init__(self, *, residual: bool, zeros: bool = False):
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(6), nn.Linear(6, 6)
        self.residual, self.zeros = residual, zeros

    def forward(self, hidden):
        normed = self.norm(0 * hidden if self.zeros else hidden)
        return self.linear(normed) + (normed if self.residual else hidden)


@pytest.mark.parametrize(
    ("options", "movable"),
    [({"residual": False}, True), ({"residual": True}, False)],
)
def test_what_nobody_sees_is_found_by_trial(options, movable):
    torch.manual_seed(0)
    block = Doubled(**options).requires_grad_(False)
    given = BlockInput(torch.randn(1, 5, 6), BlockCall.of(Hidden()), {})
    (junction,) = find_junctions(block, targets_in(block), given)
    assert (junction.source is not None) == movable


def test_a_trial_on_zeros_says_nothing():
    block = Doubled(residual=False, zeros=True).requires_grad_(False)
    given = BlockInput(torch.randn(1, 5, 6), BlockCall.of(Hidden()), {})
    (junction,) = find_junctions(block, targets_in(block), given)
    assert junction.source is None


def test_a_linear_of_several_blocks_does_not_change():
    block = Doubled(residual=False).requires_grad_(False)
    given = BlockInput(torch.randn(1, 5, 6), BlockCall.of(Hidden()), {})
    (junction,) = find_junctions(block, targets_in(block), given, shared={"linear.weight"})
    assert junction.source is None


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_in_half_precision_a_norm_loses_nothing(architecture):
    model = blocks_of(architecture)
    block = model.load_block(0).to(torch.bfloat16)
    given, _ = next(through_blocks(model, TOKENS))
    given = replace(given, hidden=given.hidden.bfloat16())
    targets = targets_in(block)
    with torch.no_grad():
        for norm in (block.input_layernorm, block.post_attention_layernorm):
            norm.weight.add_(0.3 * torch.randn(norm.weight.shape).bfloat16())
        call = [x.bfloat16() if _is_float(x) else x for x in given.call.leaves]
        pairs = tuple(tuple(y.bfloat16() for y in x) if isinstance(x, tuple) else x for x in call)
        given = replace(given, call=replace(given.call, leaves=pairs))
        junction = find_junctions(block, targets, given)[0]
        assert junction.source is not None
        scale = torch.exp(torch.randn(junction.width))
        held = junction.holdable(block, scale)
        assert ((held / scale - 1).abs() < 2**-4).all() and not torch.equal(held, scale)
        old = block.input_layernorm.weight.float() + junction.source.offset
        new = dict(junction.scaled(block, held))["input_layernorm.weight"].float()
        near = (held / scale != 1).nonzero().flatten()
        product = (new + junction.source.offset) * held
        torch.testing.assert_close(product[near], old[near], rtol=1e-6, atol=0)


@pytest.mark.parametrize("size", [4.0, 30.0])
def test_a_norm_of_one_plus_w_and_its_readers_fit(size):
    """Near w = -1 bfloat16 has coarse steps for 1 + w: the scale is the one that it comes to."""
    block = nn.Module()
    block.norm = nn.Module()
    generator = torch.Generator().manual_seed(0)
    weight = (0.1 * torch.randn(64, generator=generator)).bfloat16()
    block.norm.weight = nn.Parameter(weight, requires_grad=False)
    junction = Junction(("up",), 64, "up", source=Source("norm", "norm", offset=1.0))
    scale = size * torch.exp(0.2 * torch.randn(64, generator=generator))
    held = junction.holdable(block, scale)
    after = ((weight.float() + 1) / held - 1).bfloat16().float() + 1
    torch.testing.assert_close(after * held, weight.float() + 1, rtol=1e-5, atol=0)
    assert ((held / scale - 1).abs() < 0.5).all()


def _is_float(value) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def test_the_module_around_the_readers():
    def around(*readers):
        return Junction(readers, 64, readers[0]).module

    assert around("self_attn.q_proj", "self_attn.k_proj") == "self_attn"
    assert around("mlp.gate", "mlp.experts.0.up_proj", "mlp.experts.1.up_proj") == "mlp"
    assert around("attn.c_attn") == "attn"
    assert around("self_attn.q_proj", "mlp.fc1") == ""  # attention and MLP side by side
    assert around("fc1") == ""


def test_what_another_block_shares_stays():
    """A norm of two blocks would need two weights."""
    model = blocks_of("llama")
    given, _ = next(iter(through_blocks(model, TOKENS)))
    block = model.load_block(0)
    targets, _ = model.targets_of(0, block)
    found = find_junctions(block, targets, given, {"input_layernorm.weight"})
    assert {x.readers[0] for x in found if x.source and x.source.kind == "norm"} == {
        "mlp.gate_proj"
    }
