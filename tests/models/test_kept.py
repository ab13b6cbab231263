"""Linears that stay in full precision for what they are."""

from collections.abc import Iterator

import torch
from tiny import tiny_model
from torch import nn

from q2n.models.blocks import BlockwiseModel
from q2n.models.kept import kept_note, kept_targets, shared_parameters
from q2n.models.source import open_source


def blocks_of(architecture: str) -> dict[str, nn.Module]:
    model = BlockwiseModel(open_source(tiny_model(architecture, layers=4)))
    return {model.block_name(n): block for n, block in enumerate(model.blocks)}


def last_names(names: Iterator[str] | dict[str, str]) -> set[str]:
    return {name.rpartition(".")[2] for name in names}


def test_roles_are_known_by_name_and_company() -> None:
    assert last_names(kept_targets(blocks_of("jamba"))) == {"dt_proj"}
    assert last_names(kept_targets(blocks_of("qwen3_next"))) == {"in_proj_ba"}
    assert last_names(kept_targets(blocks_of("qwen3_5_text"))) == {"in_proj_a", "in_proj_b"}
    assert not kept_targets(blocks_of("llama"))


def test_a_name_alone_is_no_role() -> None:
    block = nn.ModuleDict({"dt_proj": nn.Linear(4, 4), "in_proj_a": nn.Linear(4, 4)})
    assert not kept_targets({"blocks.0": block})
    block["conv1d"] = nn.Conv1d(4, 4, 1)
    assert list(kept_targets({"blocks.0": block})) == ["blocks.0.in_proj_a"]


def test_gates_of_shared_experts_are_kept() -> None:
    """As in Qwen's mixtures, whatever the size of the block."""
    block = nn.ModuleDict({"shared_expert": nn.Linear(4, 4), "shared_expert_gate": nn.Linear(4, 1)})
    assert list(kept_targets({"blocks.0": block})) == ["blocks.0.shared_expert_gate"]


def test_shared_matrices_are_of_several_blocks() -> None:
    """One that a block uses twice is not shared."""
    twice, other = nn.Linear(4, 4), nn.Linear(4, 4)
    first = nn.ModuleDict({"a": twice, "b": other})
    second = nn.ModuleDict({"c": nn.Linear(4, 4), "d": other})
    first["e"] = nn.Linear(4, 4)
    first["e"].weight = twice.weight
    blocks = {"x.0": first, "x.1": second}
    expected = {"x.0.b.weight", "x.0.b.bias", "x.1.d.weight", "x.1.d.bias"}
    assert shared_parameters(blocks) == expected
    assert list(kept_targets(blocks)) == ["x.0.b", "x.1.d"]


def test_a_note_names_each_kind_once() -> None:
    kept = kept_targets(blocks_of("qwen3_5_text"))
    assert kept_note(kept, "model.layers") == (
        "Layers that stay in full precision: model.layers.*.linear_attn.in_proj_b, "
        "model.layers.*.linear_attn.in_proj_a (gates and steps of a recurrence)"
    )
    assert kept_note({}, "model.layers") is None


def test_a_block_reads_what_it_shares(tmp_path) -> None:
    """The source has a shared tensor once, under its name in the first block."""
    tiny_model("zamba2", layers=4).save_pretrained(tmp_path)
    model = BlockwiseModel(open_source(tmp_path))
    first, second = (model.load_block(number).shared_transformer for number in (1, 3))
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    assert all(torch.equal(a, b) and not a.is_meta for a, b in pairs)
