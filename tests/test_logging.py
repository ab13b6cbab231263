"""Progress where nobody watches a terminal."""

from q2n import logging


def said(capsys, monkeypatch, every):
    monkeypatch.setattr(logging, "LINE_EVERY", every)
    with logging.Reporter("bars").bar("blocks", 3) as bar:
        for _ in range(3):
            bar.advance()
    return capsys.readouterr().err.splitlines()


def test_a_log_file_says_how_far_a_run_is(capsys, monkeypatch):
    lines = said(capsys, monkeypatch, every=0.0)
    assert [line[:14] for line in lines[:2]] == ["blocks: 1 of 3", "blocks: 2 of 3"]


def test_it_does_so_now_and_then(capsys, monkeypatch):
    assert not [x for x in said(capsys, monkeypatch, every=3600.0) if "of 3" in x]


def test_titles_are_no_markup(capsys):
    with logging.Reporter("bars").bar("states of ./m[x] z[/z]", 1) as bar:
        bar.detail("[/b]")
        bar.advance()
    assert "./m[x] z[/z]" in capsys.readouterr().err.replace("\n", "")
