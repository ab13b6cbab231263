"""The command line as a user meets it: output, exit codes, one line for bad input."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from q2n.cli.main import main
from q2n.config.options import table
from q2n.config.presets import PRESET_SUMMARIES
from q2n.formats import FORMATS
from q2n.methods import METHODS


def test_quantize_prints_size_and_loading_example(quantize, capsys):
    code, out = quantize("--bits", "3", "--nullspace", "--lambda", "0.3")
    assert code == 0
    said = capsys.readouterr().out
    assert (
        "bits per quantized weight" in said
        and "% of them in full precision" in said
        and "times smaller" in said
    )
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
    said = capsys.readouterr().out
    assert "1.mlp.down_proj" in said and "over all weights" in " ".join(said.split())
    text = str(place / "text.txt")
    assert main(["eval", "out", "--ppl", text, "--length", "16", "--windows", "5", "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])["perplexity"]
    assert result["windows"] == 5 and result["tokens"] == 75 and result["standard_error"] > 0


def test_eval_beside_a_reference(quantize, capsys, place):
    quantize("--bits", "2", "--quiet")
    options = ["--ppl", str(place / "text.txt"), "--length", "16", "--windows", "5"]
    beside = [*options, "--reference", str(place / "model"), "--floor", "bfloat16"]
    assert main(["eval", "out", *beside, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert 0 < result["floor"]["divergence"] < result["fidelity"]["divergence"]
    assert main(["eval", "out", *beside]) == 0
    said = capsys.readouterr().out
    assert f"{result['fidelity']['divergence']:.4f}" in said and "against itself, bfloat16" in said
    assert main(["eval", "out", str(place / "model"), *beside]) == 0
    said = capsys.readouterr().out
    assert "difference" in said and f"{-result['fidelity']['divergence']:.4f} +-" in said
    assert main(["eval", "out", *options, "--floor", "0.1"]) == 2
    assert "give --reference" in capsys.readouterr().err
    assert main(["eval", "out", str(place / "no_such"), *options]) == 2
    said = capsys.readouterr()
    assert "no_such" in said.err and "perplexity" not in said.err  # none is measured before


def test_json_mode_prints_only_json(quantize, capsys):
    assert quantize("--bits", "4", "--json")[0] == 0
    captured = capsys.readouterr()
    events = [json.loads(line) for line in captured.out.splitlines()]
    assert [event["event"] for event in events] == ["block"] * 3 + ["done"]
    done = events[-1]
    assert done["bytes_after"] < done["bytes_before"]
    assert done["bits_per_weight"] < done["bits_per_weight_all"] < 32
    assert 0 < done["full_precision_share"] < 1


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


def test_a_flag_of_none_wins_over_the_file(capsys, tmp_path, place):
    (tmp_path / "config.yaml").write_text("quality: good\nbits: 3\nformat: native\n")
    file = ["--config", str(tmp_path / "config.yaml"), "--print-config"]
    how = ["quantize", str(place / "model"), "--output", "out", *file]
    assert main([*how, "--quality", "none", "--format", "none"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["bits"] == 3 and shown["correct"] is False
    assert "quality" not in shown and "format" not in shown


def test_a_flag_wins_over_an_alias_in_the_file(capsys, tmp_path, place):
    (tmp_path / "config.yaml").write_text("nsamples: 16\nwbits: 3\n")
    file = ["--config", str(tmp_path / "config.yaml"), "--print-config"]
    how = ["quantize", str(place / "model"), "--output", "out", *file]
    assert main([*how, "--windows", "8"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert (shown["windows"], shown["bits"]) == (8, 3)


@pytest.mark.parametrize(
    "flags",
    [
        ("--allocate", "3"),
        ("--method", "quip", "--clip-sigma", "none"),
        ("--method", "quip", "--quality", "good"),
        ("--runtime", "vllm", "--outside-bits", "none"),
        ("--format", "gguf", "--quality", "good"),
    ],
)
def test_a_printed_config_is_read_as_the_same_settings(capsys, tmp_path, place, flags):
    how = ["quantize", str(place / "model"), "--output", "out"]
    assert main([*how, *flags, "--print-config"]) == 0
    printed = capsys.readouterr().out
    (tmp_path / "config.yaml").write_text(printed)
    assert main(["quantize", "--config", str(tmp_path / "config.yaml"), "--print-config"]) == 0
    assert capsys.readouterr().out == printed


def test_methods_are_listed_with_storage_and_formats(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["methods"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, entry in table().methods.items():
        (place,) = [i for i, line in enumerate(lines) if line.split()[:1] == [name]]
        assert entry.summary in lines[place]
        assert lines[place + 1].strip() == (
            f"{entry.strategy}; bits: {entry.bits}; stores {entry.storage}"
        )
    for name, method in METHODS.items():
        entry = table().methods[name]
        assert (entry.bits, entry.storage) == (method.bits_offered, method().storage.kind)
    (place,) = [i for i, line in enumerate(lines) if line.split()[:1] == ["uniform"]]
    assert ", ".join(name for name in FORMATS if name not in ("gguf", "exl3")) in lines[place + 1]
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["methods"]) == 0
    assert "\N{HORIZONTAL ELLIPSIS}" not in capsys.readouterr().out


def test_help_of_method_describes_every_method(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        main(["quantize", "--help"])
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    for name, method in METHODS.items():
        assert f"{name}: {method.__doc__.splitlines()[0]}" in lines
    for name, summary in PRESET_SUMMARIES.items():
        assert f"{name}: {summary}" in lines


def test_a_native_checkpoint_is_written_inspected_and_evaluated(quantize, capsys, place):
    code, out = quantize("--bits", "3", "--method", "rtn", "--format", "native")
    assert code == 0 and "import q2n" in capsys.readouterr().out
    assert "import q2n" in (out / "README.md").read_text()
    assert main(["inspect", "out"]) == 0
    text = str(place / "text.txt")
    options = ["--length", "16", "--windows", "2", "--dtype", "auto"]
    assert main(["eval", "out", "--ppl", text, *options]) == 0


@pytest.mark.parametrize("step", ["--nullspace", "--output-scales"])
def test_inspect_draws_a_picture(quantize, capsys, tmp_path, step):
    quantize("--bits", "4", step, "--quiet")
    assert main(["inspect", "out", "--plot", "layers.png"]) == 0
    assert (tmp_path / "layers.png").read_bytes().startswith(b"\x89PNG")
    assert main(["inspect", "out", "--plot", "layers.doc"]) == 2
    assert "layers.doc" in capsys.readouterr().err


def test_inspect_writes_a_page(quantize, capsys, tmp_path):
    quantize("--bits", "4", "--nullspace", "--quiet")
    assert main(["inspect", "out", "--html", "page.html"]) == 0
    page = (tmp_path / "page.html").read_text()
    assert page.count("<svg") == 2 and "output error by block" in page
    assert page.count('<th scope="row">model.layers.') == 21 and "bits per quantized weight" in page
    capsys.readouterr()
    (tmp_path / "page.html").write_text("mine")
    assert main(["inspect", "out", "--html", "page.html"]) == 2
    assert main(["inspect", "out", "--html", "x.html", "--fidelity", "--ppl", "text.txt"]) == 2
    assert "page.html is there" in (said := capsys.readouterr().err) and "leave out" in said


def test_inspect_says_what_each_block_and_layer_costs(quantize, capsys, place):
    assert quantize("--bits", "3")[0] == 0
    capsys.readouterr()
    text = ("--fidelity", "--ppl", str(place / "text.txt"), "--windows", "3", "--length", "16")
    assert main(["inspect", "out", *text, "--json", "--plot", "costs.png"]) == 0
    lines = capsys.readouterr().out.splitlines()
    costs = json.loads(lines[-1])
    assert [block["block"] for block in costs["blocks"]] == [f"model.layers.{i}" for i in range(3)]
    first, last = (costs["blocks"][i]["up_to_here"]["divergence"] for i in (0, -1))
    assert 0 < first < last and (costs["windows"], costs["length"]) == (3, 16)
    assert len(costs["blocks"][0]["layers"]) == 7
    assert Path("costs.png").stat().st_size > 1000
    assert main(["inspect", "out", *text]) == 0
    printed = capsys.readouterr()
    assert "12 times" in printed.err and "forward passes" in printed.err
    for words in (
        "alone KL",
        "so far KL",
        "layers with the largest errors",
        "text.txt: 3 windows of 16 tokens",
    ):
        assert words in printed.out


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--fidelity",), "give --ppl too"),
        (("--ppl", "text.txt"), "does nothing without --fidelity"),
        (("--batch-size", "2"), "--batch-size does nothing without --fidelity"),
        (("--fidelity", "--ppl", "text.txt", "--windows", "0"), "windows is 0"),
        (("--fidelity", "--ppl", "nowhere.txt"), "nowhere.txt"),
    ],
)
def test_inspect_refuses_what_it_cannot_measure(quantize, one_line, capsys, flags, words):
    assert quantize("--bits", "3", "--method", "rtn")[0] == 0
    capsys.readouterr()
    assert main(["inspect", "out", *flags]) == 2
    assert words in one_line()


def test_inspect_of_a_checkpoint_whose_original_is_gone_asks_for_it(
    quantize, one_line, capsys, place
):
    assert quantize("--bits", "3", "--method", "rtn")[0] == 0
    Path("out/q2n.json").unlink()
    capsys.readouterr()
    text = ("--fidelity", "--ppl", str(place / "text.txt"), "--windows", "3", "--length", "16")
    assert main(["inspect", "out", *text]) == 2
    assert "--reference" in one_line()


def test_an_axis_may_be_named_with_several_labels(tmp_path, capsys):
    only = ["--scale", "small", "--only", "model=smollm2-135m", "--only", "step=Q2N"]
    only += ["--only", "seed=0", "--only", "seed=2"]
    assert main(["sweep", "table4", "--output", str(tmp_path), "--dry-run", "--json", *only]) == 0
    original, *cells = json.loads(capsys.readouterr().out)["cells"]
    assert original == {"model": "smollm2-135m"}
    assert [cell["seed"] for cell in cells] == [0, 2]
