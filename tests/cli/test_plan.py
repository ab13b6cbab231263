"""`q2n plan` from the command line."""

import json

import pytest
from tiny import tiny_model

from q2n.cli.main import main
from q2n.models import checkpoint_files

RATES = {
    "product": 1e12,
    "float32": 1e11,
    "memory": 1e11,
    "link": 1e10,
    "between": 1e10,
    "disk": 1e9,
    "device_bytes": 1e10,
    "host_bytes": 2e8,
    "libraries_bytes": 1e8,
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a configuration and no weights, and rates beside it."""
    monkeypatch.chdir(tmp_path)
    config = tiny_model(layers=2).config
    config.max_position_embeddings = 4096
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained("model")
    (tmp_path / "rates.json").write_text(json.dumps(RATES))
    return tmp_path


def test_a_plan_is_printed_and_json(place, capsys):
    how = ["plan", "model", "--windows", "4000", "--length", "64", "--rates", "rates.json"]
    assert main([*how, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [stage["name"] for stage in found["stages"]][:3] == ["load", "measure", "solve"]
    assert found["host_bytes"] > 4000 * 64 * 64 * 4
    assert main(how) == 0
    shown = capsys.readouterr().out
    assert "measure" in shown and "bound by" in shown and "--activations disk" in shown


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["no model"]),
        (["model", "--ranks", "0"], ["--ranks", "at least 1"]),
        (["nowhere"], ["'nowhere'", "folder"]),
        (["model", "--revision", "v1"], ["'v1'", "leave --revision out"]),
        (["model", "--rates", "none.json"], ["none.json"]),
        (["model", "--rates", "bad.json"], ["bad.json", "'speed'", "product"]),
        (["model", "--rates", "zero.json"], ["disk is 0"]),
        (["model", "--length", "99999"], ["99999", "positions"]),
        (["model", "--group-size", "7"], ["groups of 7", "columns"]),
        (["model", "--runtime", "exllamav3", "--bits", "4"], ["exllamav3"]),
        (["model", "--ranks", "9", "--windows", "8"], ["9 ranks and 8 calibration windows"]),
        (["model", "--ranks", "2", "--refit", "block"], ["takes one rank"]),
        (["quantized"], ["quantized already"]),
    ],
)
def test_a_plan_without_its_inputs_is_refused(place, capsys, arguments, words):
    (place / "bad.json").write_text('{"speed": 1}')
    (place / "zero.json").write_text('{"disk": 0}')
    config = json.loads((place / "model" / "config.json").read_text())
    (place / "quantized").mkdir()
    described = {**config, "quantization_config": {"quant_method": "awq"}}
    (place / "quantized" / "config.json").write_text(json.dumps(described))
    assert main(["plan", *arguments]) == 2
    message = capsys.readouterr().err
    assert all(word in message for word in words), message


def test_rates_that_are_missing_are_measured(place, capsys):
    (place / "some.json").write_text('{"disk": 123}')
    how = ["plan", "model", "--windows", "4", "--length", "64", "--rates", "some.json", "--json"]
    assert main(how) == 0
    write = json.loads(capsys.readouterr().out)["stages"][4]
    assert write["bound_by"] == "disk" and write["seconds"] > 100


def test_of_a_model_on_the_hub_the_configuration_alone_is_fetched(place, capsys, monkeypatch):
    asked = []

    def fetched(name, revision, allow_patterns, **_):
        asked.append((name, revision, allow_patterns))
        return str(place / "model")

    monkeypatch.setattr(checkpoint_files, "snapshot_download", fetched)
    how = ["plan", "some/model", "--revision", "v1", "--rates", "rates.json", "--json"]
    assert main([*how, "--windows", "4", "--length", "64"]) == 0
    assert json.loads(capsys.readouterr().out)["checkpoint_bytes"] > 0
    assert asked == [("some/model", "v1", ["config.json"])]


@pytest.mark.parametrize(
    "format", ["compressed-tensors", "gptq_v2", "mlx", "native", "gguf", "dequantized"]
)
def test_every_format_is_planned_without_tokenizer_or_weights(place, capsys, format):
    how = ["plan", "model", "--bits", "4", "--format", format, "--windows", "8", "--length", "64"]
    how += ["--group-size", "32"] if format == "mlx" else []
    assert main([*how, "--rates", "rates.json"]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first == f"model: gptq, 8 windows of 64 tokens, written as {format}"
