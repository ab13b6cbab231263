"""What is ours is removed, what is not stays where it is."""

import pytest

from q2n.disk.folders import (
    MARKER,
    fresh_folder,
    leave_working_folder,
    make_working_folder,
    remove_known,
    require_ours,
)
from q2n.errors import InputError


def ours(path: str) -> bool:
    return path.endswith(".tmp")


def test_a_folder_is_made_and_left_without_a_trace(tmp_path):
    folder = tmp_path / "a" / "out.partial"
    make_working_folder(folder)
    make_working_folder(folder)  # of an earlier run: taken again
    (folder / "x.tmp").touch()
    assert leave_working_folder(folder, ours) == [] and not folder.exists()


def test_an_empty_folder_may_be_taken(tmp_path):
    make_working_folder(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == [MARKER]


def test_leaving_an_empty_folder_removes_it_and_any_other_stays(tmp_path):
    (tmp_path / "empty").mkdir()
    assert leave_working_folder(tmp_path / "empty", ours) == []
    mine(tmp_path / "mine")
    (tmp_path / "mine" / "x.tmp").touch()
    assert leave_working_folder(tmp_path / "mine", ours) == []
    assert sorted(str(x.relative_to(tmp_path)) for x in tmp_path.rglob("*")) == [
        "mine",
        "mine/mine.txt",
        "mine/x.tmp",
    ]


def mine(folder):
    folder.mkdir()
    (folder / "mine.txt").write_text("precious")


def linked(folder):
    make_working_folder(folder.with_name("elsewhere"))
    folder.symlink_to(folder.with_name("elsewhere"))


@pytest.mark.parametrize(
    "make",
    [
        mine,
        linked,
        lambda folder: folder.write_text("a file"),
        lambda folder: folder.symlink_to("nowhere"),
    ],
)
def test_somebody_elses_is_refused(tmp_path, make):
    folder = tmp_path / "out.partial"
    make(folder)
    before = sorted(tmp_path.rglob("*"))
    for call in (require_ours, make_working_folder):
        with pytest.raises(InputError, match=r"out\.partial is in the way"):
            call(folder)
    assert sorted(tmp_path.rglob("*")) == before


def test_only_known_files_go_and_the_rest_is_named(tmp_path):
    folder, other = tmp_path / "out.partial", tmp_path / "other"
    make_working_folder(folder)
    mine(other)
    (other / "y.tmp").touch()
    (folder / "sub" / "deep").mkdir(parents=True)
    for name in ("x.tmp", "sub/x.tmp", "sub/deep/x.tmp", "sub/mine.txt"):
        (folder / name).write_text(name)
    (folder / "link").symlink_to(other)
    assert leave_working_folder(folder, ours) == ["link", MARKER, "sub/mine.txt"]
    assert (folder / "sub" / "mine.txt").read_text() == "sub/mine.txt"
    assert not (folder / "sub" / "deep").exists() and not list(folder.rglob("x.tmp"))
    assert sorted(file.name for file in other.iterdir()) == ["mine.txt", "y.tmp"]


def test_a_linked_folder_is_not_emptied(tmp_path):
    mine(tmp_path / "mine")
    (tmp_path / "mine" / "x.tmp").touch()
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    assert remove_known(tmp_path / "link", ours) == ["."]
    with pytest.raises(InputError, match="link"):
        fresh_folder(tmp_path / "link", ours)
    assert (tmp_path / "mine" / "x.tmp").exists()


def test_a_fresh_folder_is_empty_or_refused(tmp_path):
    folder = tmp_path / "a" / "b"
    fresh_folder(folder, ours)
    (folder / "x.tmp").touch()
    fresh_folder(folder, ours)
    assert list(folder.iterdir()) == []
    (folder / "mine.txt").touch()
    with pytest.raises(InputError, match="did not write"):
        fresh_folder(folder, ours)
    assert (folder / "mine.txt").exists()
