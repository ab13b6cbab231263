"""A name that cannot be an output is refused before anything is read."""

import os

import pytest

from q2n.config.output import output_folder
from q2n.config.settings import RunSettings
from q2n.errors import InputError
from q2n.models.checkpoint_files import resolve_checkpoint


def folder_for(output, model="model", **options):
    return output_folder(RunSettings(model=str(model), output=str(output)), **options)


def test_a_new_name_is_taken_as_it_is(tmp_path):
    for output in (tmp_path / "out", tmp_path / "a" / "b", tmp_path / "ä ö%\u3000"):
        assert folder_for(output) == output
    assert list(tmp_path.iterdir()) == []


def test_the_way_up_is_followed(tmp_path):
    assert folder_for(f"{tmp_path}/missing/../out") == tmp_path / "out"
    with pytest.raises(InputError, match="exists"):
        folder_for(f"{tmp_path}/missing/..")


@pytest.mark.parametrize("name", ["a\nb", "a\0b", "a\x1b[31m", "a" * 250, "caf\udce9"])
def test_a_name_that_is_none(tmp_path, name):
    with pytest.raises(InputError, match="output"):
        folder_for(f"{tmp_path}/{name}")


def test_what_is_there_is_named(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "folder").mkdir()
    for name in ("file", "link", "folder"):
        for resume in (True, False):
            with pytest.raises(InputError, match=f"{name} exists"):
                folder_for(tmp_path / name, resume=resume)
    with pytest.raises(InputError, match="file is not a folder"):
        folder_for(tmp_path / "file" / "out")
    with pytest.raises(InputError, match="file is not a folder"):
        folder_for(tmp_path / "file" / "out" / "deeper")


def test_a_finished_checkpoint_may_be_resumed(tmp_path):
    (tmp_path / "q2n.json").touch()
    assert folder_for(tmp_path, resume=True) == tmp_path
    with pytest.raises(InputError, match="exists"):
        folder_for(tmp_path)


def test_the_models_folder_is_left_alone(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    for output in ("model/out", tmp_path / "model" / "a" / "out"):
        with pytest.raises(InputError, match="lies in the model's folder"):
            folder_for(output)
    assert folder_for("model-out") and os.listdir(tmp_path) == ["model"]


def test_the_models_folder_is_left_alone_behind_a_link_too(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "link").symlink_to("model")
    for output, model in ((tmp_path / "model" / "out", "link"), (tmp_path / "link" / "o", "model")):
        with pytest.raises(InputError, match="lies in the model's folder"):
            folder_for(output, tmp_path / model)


def test_the_home_folder_is_meant_by_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    assert folder_for("~/out") == tmp_path / "out"
    with pytest.raises(InputError, match="lies in the model's folder"):
        folder_for("~/model/out", "~/model")
    assert resolve_checkpoint("~/model") == tmp_path / "model"
