"""Bits per weight over all weights are what the files hold."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import save_tiny, tiny_model

import q2n
from q2n.models.full_precision import FullPrecision, full_precision
from q2n.models.source import open_source
from q2n.report.block_record import BlockRecord
from q2n.report.checkpoint import over_all_weights
from q2n.report.tables import bits_line

LINEAR = "model.layers.0.mlp.up_proj"


def test_bits_over_all_weights_by_hand():
    layer = {"shape": [2, 8], "bits_per_weight": 3.5, "record": {}}
    facts = {"block": "0", "seconds": 1.0, "never_called": [], "ignored": []}
    block = BlockRecord.from_facts({**facts, "layers": {"up": layer}})
    totals = over_all_weights([block], FullPrecision(weights=48, bits=48 * 16))
    assert totals == {
        "bits_per_weight_all": (16 * 3.5 + 48 * 16) / 64,
        "full_precision_share": 0.75,
        "bits_per_weight_outside": 16,
        "bytes_outside": 96,
    }


@pytest.mark.parametrize("tied", [True, False])
def test_a_tied_weight_counts_once_and_a_buffer_does_not(tied):
    model = tiny_model(tie_word_embeddings=tied)
    model.register_buffer("steps", torch.zeros(7))
    total = sum(p.numel() for p in model.parameters())
    left = full_precision(open_source(model), [LINEAR])
    assert left.weights == total - 64 * 96
    assert left.bits == 32 * left.weights
    assert full_precision(open_source(model, dtype="bfloat16"), []).bits == 16 * total


def test_tensors_that_no_module_takes_count_too(tmp_path):
    file = save_tiny(tmp_path / "model") / "model.safetensors"
    plain = full_precision(open_source(tmp_path / "model"), [])
    save_file({**load_file(file), "mtp.proj.weight": torch.zeros(5, 7).bfloat16()}, file)
    left = full_precision(open_source(tmp_path / "model"), [])
    assert (left.weights, left.bits) == (plain.weights + 35, plain.bits + 35 * 16)
    settings = {"method": "rtn", "bits": 8, "format": "native"}
    beside = [{}, {"activation_bits": 8}]  # parts that run beside the weights change no share
    records = [
        q2n.quantize(tmp_path / "model", tmp_path / str(number), **settings, **part).record
        for number, part in enumerate(beside)
    ]
    assert records[0]["full_precision_share"] == records[1]["full_precision_share"]


@pytest.mark.parametrize(
    "settings",
    [
        {"rotate": "hadamard"},
        {"ignore": ["*q_proj"]},
        {"outside_bits": 4},
        {"outside_bits": 8, "rotate": "hadamard"},
        {},
    ],
)
def test_the_record_counts_what_the_files_hold(tmp_path, settings):
    """Codes of 4 and 8 bits and 16-bit scales fill whole words here: nothing is padded."""
    folder = save_tiny(tmp_path / "model", tie_word_embeddings=True)
    settings = {"method": "rtn", "bits": 4, "group_size": 32, "format": "native", **settings}
    done = q2n.quantize(folder, tmp_path / "out", **settings)
    record, tensors = done.record, load_file(tmp_path / "out" / "model.safetensors")
    stored = 8 * sum(x.numel() * x.element_size() for x in tensors.values())
    plain = sum(x.numel() for name, x in tensors.items() if name.endswith(".weight"))
    quantized = sum(x["shape"][0] * x["shape"][1] for x in record["layers"].values())
    tables = (
        len([x for x in tensors if x.endswith((".codes", ".scale")) and ".layers." not in x]) // 2
    )
    assert tables == (0 if "outside_bits" not in settings else 2 if "rotate" in settings else 1)
    outside = plain + tables * 64 * 128
    weights = outside + quantized
    assert record["bits_per_weight_all"] == pytest.approx(stored / weights, rel=1e-12)
    assert record["full_precision_share"] == pytest.approx(plain / weights, rel=1e-12)
    inside = sum(
        x.nbytes for name, x in tensors.items() if "_proj." in name and ".weight" not in name
    )
    assert record["bytes_outside"] == stored / 8 - inside
    assert record["bits_per_weight_outside"] == pytest.approx(8 * (stored / 8 - inside) / outside)
    row = f"| {record['bits_per_weight_all']:.3f} |"
    assert row in (tmp_path / "out" / "README.md").read_text()
    assert q2n.inspect(tmp_path / "out") == record


def test_an_unfinished_run_says_what_it_knows():
    assert bits_line({"bits_per_weight": 2.25}) == "2.250 bits per quantized weight"
    older = {"bits_per_weight": 2.25, "bits_per_weight_all": 7.5, "full_precision_share": 0.2113}
    assert bits_line(older) == (
        "2.250 bits per quantized weight, "
        "7.500 over all weights (21.13 % of them in full precision)"
    )
    known = {
        "bits_per_weight": 2.25,
        "bits_per_weight_all": 7.5,
        "full_precision_share": 0.2113,
        "bits_per_weight_outside": 8.375,
        "bytes_outside": 29_600_000,
    }
    assert bits_line(known) == (
        "2.250 bits per quantized weight, 8.375 outside of them (29.6 MB), "
        "7.500 over all weights (21.13 % of them in full precision)"
    )
