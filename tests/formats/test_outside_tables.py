"""Embeddings and head in few bits: which tensors, their grid, what is refused, what is written."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from formats.tiny_models import llama, random_layers
from safetensors.torch import load_file
from tiny import save_tiny, tiny_model, tiny_seeing_model
from torch import nn

import q2n
from q2n.errors import InputError, NumericalError
from q2n.formats import FORMATS
from q2n.formats import outside_tables as room
from q2n.formats.load import load_model
from q2n.formats.outside_tables import round_table, tables_of
from q2n.formats.table_grid import WIDTHS, TableGrid
from q2n.grids.fitted import uniform_grid
from q2n.grids.granularity import PerGroup
from q2n.grids.uniform import UniformGrid
from q2n.methods.rtn import RTN
from q2n.models.source import open_source


def table(words: int, width: int, seed: int = 0) -> torch.Tensor:
    """With heavy tails, as embeddings have."""
    random = torch.Generator().manual_seed(seed)
    return torch.randn(words, width, generator=random) ** 3


def nearest(rows: torch.Tensor, found) -> torch.Tensor:
    """Of every number the level of its group that is nearest."""
    levels = torch.arange(2**found.bits).float()
    values = torch.empty_like(rows)
    for i, row in enumerate(rows):
        for j, number in enumerate(row):
            group = j // found.group_size
            own = found.scale[i, group].float() * (levels - found.zero[i, group].float())
            values[i, j] = own[(own - number).abs().argmin()]
    return values


@pytest.mark.parametrize("bits", WIDTHS)
def test_numbers_go_to_the_nearest_level_of_a_searched_grid(bits: int) -> None:
    rows = table(7, 48)
    found = round_table(rows, TableGrid(bits), torch.float16, "table")
    assert (found.group_size, found.symmetric) == (16, bits == 8)
    # Where two levels are equally near, either will do: 0 such places among random numbers.
    assert torch.equal(found.dequantize(), nearest(rows, found))
    grid = UniformGrid(bits=bits, symmetric=bits == 8, granularity=PerGroup(16))
    plain = uniform_grid(grid, rows, torch.float16, "table").nearest()
    errors = [(layer.dequantize() - rows).square().sum() for layer in (found, plain)]
    assert errors[0] < 0.9 * errors[1]  # than from the least to the largest number


def test_a_part_of_the_rows_at_a_time_gives_the_same(monkeypatch) -> None:
    rows = table(11, 64)
    whole = round_table(rows, TableGrid(4), torch.bfloat16, "table")
    monkeypatch.setattr(room, "_ENTRIES_AT_ONCE", 200)
    pieces = round_table(rows, TableGrid(4), torch.bfloat16, "table")
    for name, tensor in whole.tensors().items():
        assert torch.equal(tensor, pieces.tensors()[name])


@pytest.mark.parametrize("bits", WIDTHS)
def test_rows_of_zeros_stay_zeros(bits: int) -> None:
    """Padding rows and vocabularies that were resized."""
    rows = table(3, 64)
    rows[1] = 0
    found = round_table(rows, TableGrid(bits), torch.float16, "table").dequantize()
    assert not found[1].any() and found[0].any()


def test_numbers_that_are_not_finite_are_refused_by_name() -> None:
    rows = table(3, 64)
    rows[2, 5] = float("nan")
    with pytest.raises(NumericalError, match=r"model\.embed_tokens"):
        round_table(rows, TableGrid(8), torch.float16, "model.embed_tokens")


@pytest.mark.parametrize(
    ("bits", "width", "size"),
    [(6, 640, 64), (8, 576, 64), (4, 576, 32), (8, 96, 32), (4, 48, 16), (6, 72, 72), (4, 8, 8)],
)
def test_groups_divide_the_columns(bits: int, width: int, size: int) -> None:
    assert TableGrid(bits).group_size(width) == size


def test_tables_are_embeddings_and_a_head_of_its_own() -> None:
    shape = (128, 64)
    assert tables_of(open_source(llama(tied=True))) == {"model.embed_tokens": shape}
    both = {"model.embed_tokens": shape, "lm_head": shape}
    assert tables_of(open_source(llama())) == both
    gpt2 = tables_of(open_source(tiny_model("gpt2")))
    assert gpt2 == {"transformer.wte": shape}  # and no positions
    seeing = tiny_seeing_model(
        layers=1,
        tower={
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "intermediate_size": 32,
            "num_attention_heads": 2,
        },
    )
    assert tables_of(open_source(seeing)) == {"model.language_model.embed_tokens": shape}


def test_tables_of_another_kind_are_refused_by_name() -> None:
    model = llama()
    model.lm_head = nn.Sequential(nn.Linear(64, 128))
    model.lm_head.weight = model.lm_head[0].weight
    with pytest.raises(InputError, match="lm_head is a Sequential.*leave out --outside-bits"):
        tables_of(open_source(model))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", ["native", "mlx"])
def test_what_is_written_is_what_is_rounded(tmp_path: Path, name: str, tied: bool) -> None:
    model = llama(tied=tied, dtype=torch.bfloat16)
    format, layers = FORMATS[name], random_layers(model, 3, 32, True, torch.bfloat16)
    source = open_source(model)
    format.with_outside_bits(8).write(tmp_path / "out", source, layers)
    dense = load_model(tmp_path / "out")
    for table in tables_of(source):
        own = model.get_submodule(table).weight.detach().float()
        rounded = round_table(own, TableGrid(8), torch.bfloat16, table)
        expected = rounded.dequantize().bfloat16()
        assert torch.equal(dense.get_submodule(table).weight, expected)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["tie_word_embeddings"] == tied
    assert (dense.lm_head.weight is dense.model.embed_tokens.weight) == tied
    keys = load_file(tmp_path / "out" / "model.safetensors").keys()
    assert any(key.startswith("lm_head") for key in keys) != tied
    left = config["quantization_config"].get("modules_not_converted", [])
    assert left == []


def test_a_head_that_stays_is_not_named_as_converted(tmp_path: Path) -> None:
    """Without rounded tables config.json says of a tied head what it always said."""
    model = llama(tied=True)
    layers = random_layers(model, 3, 32, True, torch.float16)
    FORMATS["native"].write(tmp_path / "out", open_source(model), layers)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization_config"]["modules_not_converted"] == ["lm_head"]


@pytest.mark.parametrize("settings", [{}, {"rotate": "hadamard", "format": "native"}])
def test_a_whole_run_says_what_was_done(tmp_path: Path, settings: dict) -> None:
    save_tiny(tmp_path / "model", "qwen2", tie_word_embeddings=True)
    settings = {"method": "rtn", "format": "mlx", "group_size": 32, **settings}
    done = q2n.quantize(tmp_path / "model", tmp_path / "out", outside_bits=6, **settings)
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    inside = ("codes", "scale", "zero", "scales", "biases", "proj.weight", "proj.bias")
    blocks = [x for name, x in tensors.items() if ".layers." in name and name.endswith(inside)]
    biases = [x for name, x in tensors.items() if name.endswith("proj.bias")]
    outside = done.bytes_after - sum(x.nbytes for x in blocks) + sum(x.nbytes for x in biases)
    assert done.record["bytes_outside"] == outside
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Embeddings and output head are in 6 bits, norms and biases are not quantized." in card
    assert done.record["settings"]["outside_bits"] == 6
    again = q2n.quantize(
        tmp_path / "model", tmp_path / "out", outside_bits=6, resume=True, **settings
    )
    assert again.record == done.record
    with pytest.raises(InputError, match="outside_bits"):
        q2n.quantize(tmp_path / "model", tmp_path / "out", resume=True, **settings)


def test_mlx_refuses_rows_that_its_groups_do_not_divide(tmp_path: Path) -> None:
    model = llama(hidden=48)
    container = FORMATS["mlx"].with_outside_bits(4).container
    storage = RTN(bits=4, group_size=32).storage
    with pytest.raises(InputError, match=r"none of them divides the 48 of model.embed_tokens"):
        container.check(open_source(model), storage)
    assert replace(container, tables=None).check(open_source(model), storage) == []
