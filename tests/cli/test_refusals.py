"""Input that cannot be used: exit code 2, one line, and nothing left behind."""

import pytest
from safetensors.torch import load_file, save_file
from tiny import save_tiny

from q2n.cli.main import main
from q2n.config.options import table
from q2n.errors import InputError
from q2n.layers.quantized import StorageSpec
from q2n.methods import METHODS


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--bits", "7"], ["bits", "7"]),
        (["--bits", "x"], ["bits", "x"]),
        (["--method", "magic"], ["magic", "gptq"]),
        (["--method", "gptk"], ["gptk", "Did you mean 'gptq'?"]),
        (["--method", "rtn", "--act-order"], ["rtn", "act_order"]),
        (["--group-sise", "64"], ["--group-sise", "did you mean --group-size?"]),
        (["--group_size", "64"], ["--group_size", "did you mean --group-size?"]),
        (["--config", "missing.yaml"], ["missing.yaml cannot be read: FileNotFoundError"]),
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
def test_bad_options_get_one_line_and_leave_nothing(quantize, one_line, flags, words):
    code, out = quantize(*flags)
    line = one_line()
    assert code == 2
    assert all(word in line for word in words), line
    assert not out.exists() and not out.with_name("out.partial").exists()


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["eval", "model", "--corpus", "text"], "see q2n eval --help"),
        (["methods", "--json"], "see q2n methods --help"),
        (["sweep", "plan", "--ouput", "x"], "did you mean --output?"),
    ],
)
def test_only_flags_of_the_command_are_proposed(arguments, hint, one_line):
    assert main(arguments) == 2
    assert one_line().endswith(hint)


def damaged(tmp_path, damage):
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
    quantize, capsys, one_line, tmp_path, damage, word
):
    model = damaged(tmp_path, damage)
    capsys.readouterr()
    code, out = quantize("--bits", "4", model=model)
    line = one_line()
    assert code == 2
    assert word in line
    assert not out.exists() and not out.with_name("out.partial").exists()


@pytest.mark.parametrize("text", ["", "too short"])
def test_text_that_is_too_short(quantize, one_line, tmp_path, text):
    (tmp_path / "short.txt").write_text(text)
    assert quantize("--corpus", "short.txt", "--bits", "4")[0] == 2
    assert "short.txt" in one_line()


@pytest.mark.parametrize(("rank", "words"), [("0", "exists"), ("1", "the ranks meet")])
def test_the_output_folder_is_the_first_rank_s(
    quantize, one_line, tmp_path, monkeypatch, rank, words
):
    """Of torchrun on several machines: what lies there on another one does not count."""

    def launched():
        raise InputError("the ranks meet")

    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr("q2n.distributed.launch.launched", launched)
    assert quantize("--bits", "4")[0] == 2
    assert words in one_line()


def test_an_output_folder_that_exists(quantize, one_line, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("precious")
    assert quantize("--bits", "4")[0] == 2
    assert "exists" in one_line()
    assert (tmp_path / "out" / "mine.txt").read_text() == "precious"


COMPRESSED = ("--format", "compressed-tensors")
ROTATED = ("quarot", "spinquant")


@pytest.mark.parametrize("method", ["quip", "pbllm", "leanquant", "owq", *ROTATED, "ldlq"])
def test_a_format_lists_those_that_hold_the_method(quantize, one_line, method):
    code, out = quantize("--method", method, *COMPRESSED)
    line = one_line()
    assert code == 2 and f"compressed-tensors cannot hold what {method} stores" in line
    formats = ", ".join(table().methods[method].formats)
    assert formats == ("native" if method in ROTATED else "native, dequantized")
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
def test_format_refuses_changes_of_the_run(quantize, one_line, flags, formats):
    code, out = quantize("--method", "rtn", *flags, *COMPRESSED)
    line = one_line()
    assert code == 2 and "compressed-tensors cannot hold what rtn stores" in line
    assert line.rstrip().endswith(f"formats that can: {formats}")
    assert not out.exists() and not out.with_name("out.partial").exists()


def test_format_refuses_layers_that_it_cannot_hold(quantize, one_line, monkeypatch):
    monkeypatch.setattr(METHODS["rtn"], "storage", StorageSpec(kind="codebook"))
    code, out = quantize("--method", "rtn", *COMPRESSED)
    line = one_line()
    assert code == 2 and "compressed-tensors cannot hold what rtn stores" in line
    assert "formats that can: native, dequantized" in line
    assert not out.exists() and not out.with_name("out.partial").exists()
