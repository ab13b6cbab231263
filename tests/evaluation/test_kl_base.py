"""A base file by way of models' names: the divergence of a model from itself and from another."""

import pytest
from tiny import save_tiny, tiny_text

import q2n
from q2n.cli.main import main
from q2n.errors import InputError


@pytest.fixture()
def place(tmp_path, monkeypatch):
    (tmp_path / "text.txt").write_text(tiny_text())
    save_tiny(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    return tmp_path


ON = {"ppl": "text.txt", "length": 32, "windows": 10}


def test_a_model_beside_its_own_base(place):
    q2n.save_kl_base("model", "base", **ON)
    found = q2n.compare_to_kl_base("model", "base", batch_size=3)
    # 16 bits: 2.4e-4 a step; words below e^-16 are not counted.
    assert abs(found.statistics.kl.value) < 1e-6
    assert found.fidelity.same_top > 0.99
    alone = q2n.evaluate("model", protocol="llama.cpp", **ON)
    assert found.statistics.ppl.value == pytest.approx(alone.perplexity, rel=1e-5)
    assert found.statistics.tokens == alone.tokens == 10 * 15


def test_a_quantized_model_beside_the_base_of_its_original(place):
    q2n.quantize("model", "out", method="rtn", bits=2, group_size=-1)
    q2n.save_kl_base("model", "base", **ON)
    found = q2n.compare_to_kl_base("out", "base")
    direct = q2n.compare("out", "model", protocol="llama.cpp", **ON).fidelity
    assert found.fidelity.divergence == pytest.approx(direct.divergence, rel=1e-3)
    assert found.fidelity.by_window == pytest.approx(direct.by_window, rel=1e-2)
    blocks = q2n.compare_to_kl_base("out", "base", block_by_block=True)
    assert blocks.statistics == found.statistics


def test_on_the_command_line(place, capsys):
    on = ["--ppl", "text.txt", "--length", "32", "--windows", "10"]
    written = ["eval", "model", *on, "--save-kl-base", "base"]
    assert main(written) == 2
    assert "--protocol llama.cpp, whose file it is" in capsys.readouterr().err
    assert main([*written, "--protocol", "llama.cpp"]) == 0
    assert main(["eval", "model", "--kl-base", "base"]) == 0
    said = capsys.readouterr().out
    assert "Mean    KLD:" in said and "Same top p:" in said and "spread of the windows" in said


def test_a_missing_base_is_named(place):
    with pytest.raises(InputError, match="nowhere cannot be read"):
        q2n.compare_to_kl_base("model", "nowhere")


def test_a_place_that_cannot_take_the_base_is_refused_before_the_model_runs(place, monkeypatch):
    monkeypatch.setattr("q2n.evaluation.kl_base.opening", None)
    with pytest.raises(InputError, match=r"text\.txt is there already"):
        q2n.save_kl_base("model", "text.txt", **ON)
    with pytest.raises(InputError, match="nowhere is no folder; choose another --save-kl-base"):
        q2n.save_kl_base("model", "nowhere/base", **ON)
