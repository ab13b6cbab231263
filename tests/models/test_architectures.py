"""The block loop computes what each architecture computes, whatever its blocks take and return."""

import pytest
import torch
from through_blocks import through_blocks
from tiny import ARCHITECTURES, CONVENTIONS, TRANSPOSED, tiny_model
from tiny_recurrent import RECURRENT
from transformers import PreTrainedModel

from q2n.models.block_list import find_blocks
from q2n.models.blocks import BlockwiseModel
from q2n.models.calls import Held, Returned, first_tensor, part
from q2n.models.source import open_source

EVERY = (*ARCHITECTURES, *TRANSPOSED, *CONVENTIONS, *RECURRENT)


def outputs_of_blocks(model: PreTrainedModel, tokens: torch.Tensor) -> list[torch.Tensor]:
    """The hidden states after each block when the model runs as a whole."""
    outputs = []
    for block in find_blocks(model)[1]:
        block.register_forward_hook(
            lambda _, args, out: outputs.append(
                out if isinstance(out, torch.Tensor) else first_tensor(out)
            )
        )
    with torch.no_grad():
        model(input_ids=tokens, use_cache=False)
    return outputs


@pytest.mark.parametrize("architecture", EVERY)
def test_blocks_compute_as_the_whole_model(architecture, tmp_path):
    model = tiny_model(architecture, layers=4)
    if architecture != "glm_moe_dsa":  # whose experts are fused when they are read
        model.save_pretrained(tmp_path / "model")
        blocks = BlockwiseModel(open_source(tmp_path / "model"))
    else:
        blocks = BlockwiseModel(open_source(model))
    tokens = torch.randint(3, 128, (2, 24))
    expected = outputs_of_blocks(model, tokens)
    actual = [output.hidden for _, output in through_blocks(blocks, tokens)]
    assert len(actual) == len(expected) == 4
    atol = 1e-5 if architecture == "glm_moe_dsa" else 0  # gate and up are two products here
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=atol)


@pytest.mark.parametrize("architecture", EVERY)
def test_one_window_gives_its_part_of_the_batch(architecture):
    """Four windows: as many as heads, and one of the sizes of other axes."""
    options = {"sliding_window": 4} if architecture in ("gemma2", "mistral") else {}
    model = BlockwiseModel(open_source(tiny_model(architecture, layers=4, **options)))
    tokens = torch.randint(3, 128, (4, 12))
    for index, (given, output) in enumerate(through_blocks(model, tokens)):
        block = model.load_block(index)
        for number in range(4):
            with torch.no_grad():
                alone = given.window(number, 4).run(block).hidden
            expected = part(output.hidden, given.call.hidden_axis, number, 4)
            torch.testing.assert_close(alone, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("architecture", "slot"),
    [("gemma3n_text", Held), ("gemma4_text", Held), ("glm_moe_dsa", Returned), ("rwkv", Returned)],
)
def test_a_run_of_a_block_changes_nothing_that_it_was_given(architecture, slot):
    """So a pass that is given up may be taken again."""
    model = BlockwiseModel(open_source(tiny_model(architecture, layers=4)))
    carried = []
    for index, (given, output) in enumerate(through_blocks(model, torch.randint(3, 128, (2, 12)))):
        again = given.run(model.load_block(index))
        assert torch.equal(again.hidden, output.hidden)
        carried += given.carried
    assert carried and all(isinstance(key, slot) for key in carried)
