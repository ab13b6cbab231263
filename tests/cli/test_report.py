"""`q2n report`: what is printed, written, refused."""

import csv
import json
from pathlib import Path

import pytest
from sweep_records import sweep, write_cells

from q2n.cli.main import main


@pytest.fixture
def few(tmp_path, monkeypatch) -> str:
    """Enough for a figure."""
    monkeypatch.chdir(tmp_path)
    return str(write_cells(sweep(seeds=(0,))[:5], tmp_path / "few"))


@pytest.fixture
def runs(tmp_path, monkeypatch) -> str:
    monkeypatch.chdir(tmp_path)
    return str(write_cells(sweep(seeds=(0, 1)), tmp_path / "runs"))


def test_tables_are_printed(runs, capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    assert main(["report", runs]) == 0
    printed = capsys.readouterr()
    assert "What wins" in printed.out and "beyond its error" in printed.out
    assert "read 44, skipped 0" in printed.err


def test_the_same_tables_as_markdown_and_csv(runs, capsys) -> None:
    assert main(["report", runs, "--markdown"]) == 0
    printed = capsys.readouterr().out
    assert main(["report", runs, "--markdown", "out.md", "--csv", "out.csv"]) == 0
    assert Path("out.md").read_text() == printed and capsys.readouterr().out == ""
    lines = list(csv.DictReader(Path("out.csv").open()))
    assert sum(line["table"] == "table6" for line in lines) == 24


def test_records_are_collected_in_one_file_and_come_back(runs, capsys) -> None:
    assert main(["report", runs, "--jsonl", "all.jsonl"]) == 0
    assert len(Path("all.jsonl").read_text().splitlines()) == 44
    for place in (runs, "all.jsonl"):
        assert main(["report", place, "--markdown", f"{Path(place).name}.md"]) == 0
    assert Path("runs.md").read_bytes() == Path("all.jsonl.md").read_bytes()
    assert main(["report", "all.jsonl", "--jsonl", "all.jsonl"]) == 0


def test_what_is_skipped_is_counted_and_named(runs, capsys) -> None:
    Path(runs, "cells", "0.json").write_text('{"layout": 1, "cell"')
    assert main(["report", runs, "--markdown"]) == 0
    said = capsys.readouterr().err
    assert "read 44, skipped 1" in said and "0.json: it is not JSON, or truncated" in said


@pytest.mark.parametrize("flag", ["--markdown", "--csv", "--jsonl", "--html"])
def test_a_file_of_somebody_else_is_not_overwritten(few, capsys, flag) -> None:
    Path("notes").write_text("mine\n")
    assert main(["report", few, flag, "notes"]) == 2
    assert "notes is there and is no" in capsys.readouterr().err
    assert Path("notes").read_text() == "mine\n"
    Path("notes").write_text("")
    assert main(["report", few, flag, "notes"]) == 0
    assert main(["report", few, flag, "notes"]) == 0, "one of ours is"


NEARLY_OURS = {
    "--csv": "id,table,price\n1,2,3\n",
    "--jsonl": '{"id": 1, "page": {"layout": 3}}\n',
    "--markdown": "A note on <!-- made by q2n report -->\n",
}


@pytest.mark.parametrize("flag", NEARLY_OURS)
def test_a_file_that_holds_our_words_elsewhere_is_somebody_elses(few, capsys, flag) -> None:
    Path("notes").write_text(NEARLY_OURS[flag])
    assert main(["report", few, flag, "notes"]) == 2
    assert "notes is there and is no" in capsys.readouterr().err
    assert Path("notes").read_text() == NEARLY_OURS[flag]


def test_two_texts_are_not_written_to_one_file(few, capsys) -> None:
    for other in ("same.out", "./same.out", str(Path("same.out").absolute())):
        assert main(["report", few, "--csv", "same.out", "--jsonl", other]) == 2
        assert "--csv and --jsonl both write" in capsys.readouterr().err
    assert not Path("same.out").exists()
    assert main(["report", few, "--csv", "-", "--jsonl", "-"]) == 0


@pytest.mark.parametrize("flag", ["--markdown", "--csv", "--jsonl", "--html"])
@pytest.mark.parametrize(("name", "words"), [("no/out", "no folder"), ("runs", "is a folder")])
def test_a_place_that_takes_no_file_is_refused_first(runs, capsys, flag, name, words) -> None:
    assert main(["report", "nowhere", flag, name]) == 2
    assert words in capsys.readouterr().err


def test_no_records_are_an_error(tmp_path, capsys) -> None:
    (tmp_path / "old.jsonl").write_text(json.dumps({"setting": 1}))
    assert main(["report", str(tmp_path)]) == 2
    assert "name no layout" in capsys.readouterr().err


@pytest.mark.slow
def test_figures_are_files_and_take_the_place_of_their_own_kind_only(few, capsys) -> None:
    assert main(["report", few, "--figures", "figures"]) == 0
    assert "figures in figures" in capsys.readouterr().err
    (first, *_) = names = sorted(Path("figures").iterdir())
    assert {file.suffix for file in names} == {".svg", ".png"} and len(names) % 2 == 0
    assert main(["report", few, "--figures", "figures"]) == 0
    first.write_bytes(b"mine")
    assert main(["report", few, "--figures", "figures"]) == 2
    assert first.read_bytes() == b"mine" and first.name in capsys.readouterr().err


@pytest.mark.parametrize(("name", "words"), [("no/out", "no folder"), ("file", "is a file")])
def test_a_place_for_no_figures_is_refused_first(runs, capsys, name, words) -> None:
    Path("file").write_text("")
    assert main(["report", "nowhere", "--figures", name]) == 2
    assert words in capsys.readouterr().err


def test_a_line_stands_for_standard_output(runs, capsys) -> None:
    assert main(["report", runs, "--csv", "-"]) == 0
    printed = capsys.readouterr().out
    assert main(["report", runs, "--csv", "out.csv"]) == 0
    assert printed == Path("out.csv").read_text()


def test_a_checkpoint_is_sent_to_inspect(tmp_path, capsys) -> None:
    (tmp_path / "q2n.json").write_text("{}")
    assert main(["report", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert f"is a checkpoint, not a sweep: q2n inspect {tmp_path} prints" in " ".join(said.split())
