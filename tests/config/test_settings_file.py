"""Settings in a file: what words mean there, and everything that is not settings in one line."""

import os

import pytest

from q2n.config.reading import read_settings
from q2n.config.settings_file import read_settings_file
from q2n.errors import InputError


@pytest.fixture
def read(tmp_path):
    def of(content):
        file = tmp_path / "settings.yaml"
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_settings_file(file)

    return of


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        ("refit: off", {"refit": "off"}),
        ("nullspace: off", {"nullspace": "off"}),
        ("nullspace: on", {"nullspace": True}),
        ("nullspace: true", {"nullspace": True}),
        ("nullspace: paper", {"nullspace": "paper"}),
        ("rotate: none", {"rotate": "none"}),
        ("rotate: No", {"rotate": False}),
        ("correct: off", {"correct": False}),
        ("correct: Yes", {"correct": True}),
        ("correct: true", {"correct": True}),
        ("damping: 1e-3", {"damping": 0.001}),
        ("damping: .5", {"damping": 0.5}),
        ("lambda: 1", {"lambda": 1.0}),
        ("bits: 3", {"bits": 3}),
        ("wbits: '3'", {"wbits": 3}),
        ("windows: 010", {"windows": 10}),
        ("group_size: -1", {"group_size": -1}),
        ("revision: 1e3", {"revision": "1e3"}),
        ("revision: 0123", {"revision": "0123"}),
        ("output: 2024-01-01", {"output": "2024-01-01"}),
        ("output: on", {"output": "on"}),
        ("model: 'null'", {"model": "null"}),
        ("ppl: null\nquality: ~\nbits:", {"ppl": None, "quality": None, "bits": None}),
        ("quality: none", {"quality": None}),
        ("ignore: ['*down_proj', off]", {"ignore": ["*down_proj", "off"]}),
        ("ignore:\n- a\n- b\nonly: []", {"ignore": ["a", "b"], "only": []}),
        ("{bits: 3, refit: off}", {"bits": 3, "refit": "off"}),
        ("%YAML 1.1\n---\nbits: 3 # three\n...\n", {"bits": 3}),
        ("unknown: off", {"unknown": "off"}),
        ("", {}),
        ("# nothing\n---\n", {}),
    ],
)
def test_a_word_means_what_its_option_takes_it_for(read, text, settings):
    found = read(text)
    assert found == settings
    assert [type(value) for value in found.values()] == [type(x) for x in settings.values()]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_files_of_other_systems_are_read(read, encoding, end):
    text = f"bits: 3{end}refit: off{end}output: Größe{end}"
    assert read(text.encode(encoding)) == {"bits": 3, "refit": "off", "output": "Größe"}


LAUGHS = "a: &a [x, x]\n" + "".join(
    f"{after}: &{after} [*{before}, *{before}]\n"
    for before, after in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("bits: 3\nmethod: gptq\nbits: 4", ["line 3", "'bits' is set a second time"]),
        ("bits: 3\n---\nbits: 4", ["line 2", "second document"]),
        ("bits: 3\nscheme: {a: b}", ["line 2", "nothing within it"]),
        ("ignore: [[a]]", ["line 1", "nothing within it"]),
        ("x: " + "[" * 100_000, ["line 1", "nothing within it"]),
        ("x: " + "{a: " * 100_000, ["line 1", "nothing within it"]),
        (LAUGHS, ["line 1", "aliases"]),
        ("bits: &three 3", ["aliases"]),
        ("<<: *base", ["aliases"]),
        ("bits: !!int '3'", ["tags", "int"]),
        ("x: !!python/object/apply:os.system ['true']", ["tags"]),
        ("? [a]\n: b", ["one word"]),
        ("- a\n- b", ["no settings"]),
        ("hello", ["no settings"]),
        ("bits: 3\n\tmethod: gptq", ["YAML", "\\t"]),
        ("bits: [3", ["YAML"]),
        (b"bits: \xff", ["YAML"]),
        (b"a\0b: 3", ["YAML"]),
        ("bits: 3".encode("utf-16-le"), ["YAML"]),
        (b"#" * (2**20 + 1), ["more than 1 MB"]),
        ("? " * 500_000, ["one word"]),
        ('"' * 1_000_000, ["YAML"]),
    ],
)
def test_what_is_no_settings_gets_one_line(read, content, words):
    with pytest.raises(InputError) as refused:
        read(content)
    line = str(refused.value)
    assert "\n" not in line and len(line) < 500
    assert all(word in line for word in ["--config", *words]), line


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("windows: 1:30", "windows is '1:30'"),
        ("bits: 0x3", "bits is '0x3'"),
        ("damping: .nan", "damping is '.nan'"),
        ("damping: nan", "damping is nan"),
        ("refit: sometimes", "refit is 'sometimes'"),
        ("refit: on", "refit is True"),
        ("correct: 1", "correct is '1'; it takes true or false"),
        ("1: 2", "no option '1'"),
        ("group-size: 64", "Did you mean 'group_size'?"),
        ("ignore: down_proj", "ignore is 'down_proj'; it takes a list of texts"),
        ("bits: 3\nwbits: 3", "wbits are the same setting"),
    ],
)
def test_a_value_that_an_option_does_not_take_is_named(read, text, words):
    with pytest.raises(InputError, match=words.replace("?", r"\?")):
        read_settings(read(text))


def test_a_folder_a_pipe_and_nothing_get_one_line(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name in (".", "pipe", "missing.yaml", "x" * 300, "missing/settings.yaml"):
        with pytest.raises(InputError, match="--config"):
            read_settings_file(tmp_path / name)
