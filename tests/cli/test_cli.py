"""The command line as a user meets it: output, exit codes, one line for bad input."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import save_tiny, tiny_text

from q2n.cli.main import main
from q2n.config.options import table
from q2n.config.presets import PRESET_SUMMARIES
from q2n.formats import FORMATS
from q2n.layers.quantized import StorageSpec
from q2n.methods import METHODS


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a tiny checkpoint and a text."""
    folder = tmp_path_factory.mktemp("place")
    save_tiny(folder / "model")
    (folder / "text.txt").write_text(tiny_text())
    return folder


@pytest.fixture
def quantize(place, monkeypatch, tmp_path):
    """Run `q2n quantize model` in a fresh folder; returns (exit code, output folder)."""
    monkeypatch.chdir(tmp_path)

    def run(*flags: str, model: str = str(place / "model")):
        text = ("--corpus", str(place / "text.txt"), "--windows", "4", "--length", "16")
        return main(["quantize", model, "--output", "out", *text, *flags]), tmp_path / "out"

    return run


def one_line(capsys) -> str:
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.strip()]
    assert len([line for line in lines if not line.startswith("blocks")]) == 1, captured.err
    assert lines[-1].startswith("error:")
    return lines[-1]


def test_quantize_says_what_it_cost_and_how_to_load(quantize, capsys):
    code, out = quantize("--bits", "3", "--nullspace", "--lambda", "0.3")
    assert code == 0
    said = capsys.readouterr().out
    assert "bits per quantized weight" in said and "times smaller" in said
    record = json.loads((out / "q2n.json").read_text())
    assert record["settings"]["ridge"] == 0.3
    namespace: dict = {}
    exec(said.split("Load it with")[1], namespace)  # the printed lines are real
    assert namespace["model"](torch.arange(5).unsqueeze(0)).logits.isfinite().all()


def test_inspect_and_eval_of_a_checkpoint(quantize, capsys, place):
    quantize("--bits", "4", "--nullspace", "paper", "--quiet")
    assert main(["inspect", "out", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert len(record["layers"]) == 21
    layer = record["layers"]["model.layers.1.mlp.down_proj"]
    assert {"kept_rank", "alpha_mean", "output_error", "nullspace_energy"} <= layer.keys()
    assert main(["inspect", "out"]) == 0
    assert "1.mlp.down_proj" in capsys.readouterr().out
    text = str(place / "text.txt")
    assert main(["eval", "out", "--ppl", text, "--length", "16", "--windows", "5", "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["windows"] == 5 and result["tokens"] == 75 and result["standard_error"] > 0


def test_json_mode_prints_only_json(quantize, capsys):
    assert quantize("--bits", "4", "--json")[0] == 0
    captured = capsys.readouterr()
    events = [json.loads(line) for line in captured.out.splitlines()]
    assert [event["event"] for event in events] == ["block"] * 3 + ["done"]
    assert events[-1]["bytes_after"] < events[-1]["bytes_before"]


def test_flags_alone_stand_for_a_word(quantize):
    flags = ["--nullspace", "--output-scales", "--incoherence", "--rotate", "--correct"]
    code, out = quantize("--bits", "3", *flags, "--format", "native", "--quiet")
    assert code == 0
    settings = json.loads((out / "q2n.json").read_text())["settings"]
    assert (settings["nullspace"], settings["output_scales"]) == ("paper", "full_precision")
    assert (settings["incoherence"], settings["rotate"]) == ("kronecker", "hadamard")
    assert settings["correct"] is True


def test_aliases_of_the_field_are_flags(quantize):
    flags = ["--wbits", "3", "--groupsize", "32", "--nsamples", "3", "--seqlen", "12"]
    code, out = quantize(*flags, "--quiet")
    assert code == 0
    settings = json.loads((out / "q2n.json").read_text())["settings"]
    assert [settings[x] for x in ("bits", "group_size", "windows", "length")] == [3, 32, 3, 12]


def test_a_quality_is_one_flag(quantize):
    code, out = quantize("--bits", "3", "--quality", "best", "--refit-steps", "2", "--quiet")
    assert code == 0
    settings = json.loads((out / "q2n.json").read_text())["settings"]
    assert (settings["correct"], settings["output_scales"]) == (True, "full_precision")
    assert settings["clip"] == "scale_zero" and settings["nullspace"] == "off"
    assert (settings["refit"], settings["refit_steps"]) == ("model", 2)
    assert not out.with_name("out.partial").exists()


def test_quiet_mode_prints_nothing(quantize, capsys):
    assert quantize("--bits", "4", "--quiet")[0] == 0
    captured = capsys.readouterr()
    assert captured.out == ""


def test_printed_config_drives_the_same_run(monkeypatch, capsys, tmp_path, place):
    shown = ["--bits", "3", "--threshold", "0.2", "--nullspace", "paper", "--correct"]
    shown += ["--refit", "block", "--refit-steps", "2"]
    shown += ["--skip-layers", "*k_proj", "*o_*"]
    shown += ["--corpus", str(place / "text.txt"), "--windows", "4", "--length", "16"]
    model = str(place / "model")
    assert main(["quantize", model, "--output", "out", *shown, "--print-config"]) == 0
    (tmp_path / "config.yaml").write_text(capsys.readouterr().out)
    monkeypatch.chdir(tmp_path)
    assert main(["quantize", "--config", "config.yaml", "--quiet"]) == 0
    settings = json.loads((tmp_path / "out" / "q2n.json").read_text())["settings"]
    assert (settings["bits"], settings["threshold"], settings["nullspace"]) == (3, 0.2, "paper")
    assert settings["skip_layers"] == ["*k_proj", "*o_*"]
    assert (settings["correct"], settings["refit"], settings["refit_steps"]) == (True, "block", 2)
    assert settings["model"] == model and settings["text"].endswith("text.txt")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--bits", "5"], ["bits", "5"]),
        (["--bits", "x"], ["bits", "x"]),
        (["--method", "magic"], ["magic", "gptq"]),
        (["--method", "gptk"], ["gptk", "Did you mean 'gptq'?"]),
        (["--method", "rtn", "--act-order"], ["rtn", "act_order"]),
        (["--group-sise", "64"], ["--group-sise", "did you mean --group-size?"]),
        (["--threshold", "0.2"], ["threshold", "--nullspace"]),
        (["--group-size", "48", "--bits", "4"], ["model.layers.0.self_attn.q_proj", "64", "32"]),
        (["--format", "onnx"], ["onnx", "compressed-tensors", "native"]),
        (["--device", "quantum"], ["quantum"]),
        (["--activations", "paper"], ["paper", "disk"]),
        (["--dtype", "float8"], ["float8", "bfloat16"]),
        (["--length", "4096"], ["4096", "128"]),
        (["--windows", "0"], ["0"]),
        (["--corpus", "missing.txt"], ["missing.txt"]),
        (["--ppl", "missing.txt"], ["missing.txt"]),
        (["--nullspace", "paper", "--rule", "guess"], ["guess", "matrix_rank"]),
        (["--output-scales", "--rule", "ratio"], ["rule", "--nullspace"]),
        (["--nullspace", "sometimes"], ["sometimes", "paper", "released"]),
        (["--nullspace", "cross"], ["cross", "paper", "released"]),
        (["--output-scales", "cross"], ["cross", "full_precision", "own"]),
        (["--scales-per", "row"], ["scales_per", "--output-scales"]),
        (["--incoherence", "--incoherence-around", "all"], ["incoherence_around", "method"]),
        (["--correction-ridge", "0.1"], ["correction_ridge", "--correct"]),
        (["--quality", "perfect"], ["perfect", "good", "best"]),
        (["--refit", "sometimes"], ["sometimes", "block", "model", "both"]),
        (["--refit", "block", "--refit-steps", "0"], ["refit_steps", "0"]),
        (["--quality", "best", "--refit-steps", "0"], ["refit_steps", "0"]),
        (["--method", "pbllm", "--low-fraction", "1"], ["low_fraction", "above 0 and below 1"]),
        (["--method", "owq", "--bits", "3", "--target-bits", "2.9"], ["target_bits", "2.9", "3"]),
        (["--method", "leanquant", "--group-size", "16"], ["group_size 16", "uniform"]),
        (
            ["--method", "quarot", "--format", "native", "--kv-bits", "4", "--kv-group-size", "7"],
            ["7", "16 values of a head"],
        ),
    ],
)
def test_bad_options_get_one_line_and_leave_nothing(quantize, capsys, flags, words):
    code, out = quantize(*flags)
    line = one_line(capsys)
    assert code == 2
    assert all(word in line for word in words), line
    assert not out.exists() and not out.with_name("out.partial").exists()


def damaged(place, tmp_path, damage):
    folder = tmp_path / "damaged"
    save_tiny(folder)
    damage(folder)
    return str(folder)


def no_tokenizer(folder):
    for file in folder.glob("tokenizer*"):
        file.unlink()


def truncated(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def with_nan(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"][3, 3] = float("nan")
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (no_tokenizer, "tokenizer"),
        (truncated, "model.safetensors"),
        (with_nan, "model.layers.0.mlp.up_proj"),
        (lambda folder: (folder / "config.json").unlink(), "config.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), "safetensors"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json"),
    ],
)
def test_damaged_models_get_one_line_and_leave_nothing(
    quantize, capsys, place, tmp_path, damage, word
):
    model = damaged(place, tmp_path, damage)
    capsys.readouterr()
    code, out = quantize("--bits", "4", model=model)
    line = one_line(capsys)
    assert code == 2
    assert word in line
    assert not out.exists() and not out.with_name("out.partial").exists()


@pytest.mark.parametrize("text", ["", "too short"])
def test_text_that_is_too_short(quantize, capsys, tmp_path, text):
    (tmp_path / "short.txt").write_text(text)
    assert quantize("--corpus", "short.txt", "--bits", "4")[0] == 2
    assert "short.txt" in one_line(capsys)


def test_an_output_folder_that_exists(quantize, capsys, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("precious")
    assert quantize("--bits", "4")[0] == 2
    assert "exists" in one_line(capsys)
    assert (tmp_path / "out" / "mine.txt").read_text() == "precious"


def test_methods_are_listed_with_what_they_store_and_who_holds_it(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["methods"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, entry in table().methods.items():
        (line,) = [line for line in lines if line.split()[:1] == [name]]
        assert entry.bits in line and entry.storage in line and entry.summary in line
    for name, method in METHODS.items():
        entry = table().methods[name]
        assert (entry.bits, entry.storage) == (method.bits_offered, method().storage.kind)
    (line,) = [line for line in lines if line.split()[:1] == ["uniform"]]
    assert ", ".join(FORMATS) in line


def test_the_help_of_method_has_a_line_for_each(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        main(["quantize", "--help"])
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    for name, method in METHODS.items():
        assert f"{name}: {method.__doc__.splitlines()[0]}" in lines
    for name, summary in PRESET_SUMMARIES.items():
        assert f"{name}: {summary}" in lines


@pytest.mark.parametrize("method", ["quip", "pbllm", "leanquant", "owq", "quarot", "ldlq"])
def test_the_default_format_names_those_that_hold_each_method(quantize, capsys, method):
    code, out = quantize("--method", method)
    line = one_line(capsys)
    assert code == 2 and f"compressed-tensors cannot hold what {method} stores" in line
    formats = ", ".join(table().methods[method].formats)
    assert formats == ("native" if method == "quarot" else "native, dequantized")
    assert line.rstrip().endswith(f"formats that can: {formats}")
    assert not out.exists() and not out.with_name("out.partial").exists()


@pytest.mark.parametrize(
    ("flags", "formats"),
    [
        (["--incoherence"], "native, dequantized"),
        (["--rotate"], "native"),
        (["--kv-bits", "4"], "native"),
    ],
)
def test_a_format_refuses_what_a_run_adds_to_a_method(quantize, capsys, flags, formats):
    code, out = quantize("--method", "rtn", *flags)
    line = one_line(capsys)
    assert code == 2 and "compressed-tensors cannot hold what rtn stores" in line
    assert line.rstrip().endswith(f"formats that can: {formats}")
    assert not out.exists() and not out.with_name("out.partial").exists()


def test_a_format_refuses_a_method_that_it_cannot_hold(quantize, capsys, monkeypatch):
    monkeypatch.setattr(METHODS["rtn"], "storage", StorageSpec(kind="codebook"))
    code, out = quantize("--method", "rtn")
    line = one_line(capsys)
    assert code == 2 and "compressed-tensors cannot hold what rtn stores" in line
    assert "formats that can: native, dequantized" in line
    assert not out.exists() and not out.with_name("out.partial").exists()


def test_a_native_checkpoint_is_written_inspected_and_evaluated(quantize, capsys, place):
    code, out = quantize("--bits", "3", "--method", "rtn", "--format", "native")
    assert code == 0 and "import q2n" in capsys.readouterr().out
    assert "import q2n" in (out / "README.md").read_text()
    assert main(["inspect", "out"]) == 0
    text = str(place / "text.txt")
    assert main(["eval", "out", "--ppl", text, "--length", "16", "--windows", "2"]) == 0


@pytest.mark.parametrize("step", ["--nullspace", "--output-scales"])
def test_inspect_draws_a_picture(quantize, capsys, tmp_path, step):
    quantize("--bits", "4", step, "--quiet")
    assert main(["inspect", "out", "--plot", "layers.png"]) == 0
    assert (tmp_path / "layers.png").read_bytes().startswith(b"\x89PNG")
    assert main(["inspect", "out", "--plot", "layers.doc"]) == 2
    assert "layers.doc" in capsys.readouterr().err
