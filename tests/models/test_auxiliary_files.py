"""What travels with a model beside its weights, and what must not."""

import json
from pathlib import Path

import pytest
from tiny import save_tiny, tiny_model, tiny_tokenizer
from transformers import AutoTokenizer

from q2n.errors import InputError
from q2n.models.source import open_source

GENERATION = {"temperature": 0.6, "do_sample": False}
"""As many published models have it; `GenerationConfig.save_pretrained` refuses it."""

PROCESSORS = (
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "chat_template.json",
    "chat_template.jinja",
    "additional_chat_templates/rag.jinja",
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tiny(tmp_path / "model")


def saved(folder: Path, out: Path, **options: bool) -> dict[str, bytes]:
    out.mkdir()
    open_source(folder, **options).save_auxiliary(out)
    files = [file for file in out.rglob("*") if file.is_file()]
    return {file.relative_to(out).as_posix(): file.read_bytes() for file in files}


def test_processors_and_templates_travel_and_stray_files_do_not(folder, tmp_path):
    (folder / "additional_chat_templates").mkdir()
    for name in PROCESSORS:
        (folder / name).write_text("{}")
    for name in ("tokenizer_secrets.bak", "tokenizer.json.orig", "notes.txt", "training.json"):
        (folder / name).write_text("{}")
    files = saved(folder, tmp_path / "out")
    assert files.keys() >= {*PROCESSORS, "tokenizer.json", "tokenizer_config.json"}
    assert not any("secrets" in x or "orig" in x or "note" in x or "train" in x for x in files)
    assert all(content == (folder / name).read_bytes() for name, content in files.items())


def test_the_tokenizer_of_a_model_in_memory_travels(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = {"default": "one", "tool_use": "two"}
    source = open_source(tiny_model(), tokenizer=tokenizer)
    tokenizer.chat_template = None  # after it was seen
    source.save_auxiliary(tmp_path)
    travelled = AutoTokenizer.from_pretrained(tmp_path)
    assert travelled.get_vocab() == tokenizer.get_vocab()
    assert travelled.chat_template == {"default": "one", "tool_use": "two"}


def test_a_tokenizer_that_cannot_be_saved_is_refused(monkeypatch):
    def fails(*_):
        raise RuntimeError("no vocabulary")

    tokenizer = tiny_tokenizer()
    monkeypatch.setattr(tokenizer, "save_pretrained", fails)
    with pytest.raises(InputError, match="tokenizer cannot be saved .*no vocabulary"):
        open_source(tiny_model(), tokenizer=tokenizer)


def test_what_was_read_at_the_start_is_written(folder, tmp_path):
    source, before = open_source(folder), (folder / "tokenizer.json").read_bytes()
    (folder / "tokenizer.json").write_text("changed")
    (tmp_path / "out").mkdir()
    source.save_auxiliary(tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == before


def test_links_within_the_folder_are_followed(folder, tmp_path):
    (folder / "tokenizer.json").rename(folder / "own.json")
    (folder / "tokenizer.json").symlink_to("own.json")
    assert saved(folder, tmp_path / "out")["tokenizer.json"] == (folder / "own.json").read_bytes()
    assert not (tmp_path / "out" / "tokenizer.json").is_symlink()


def as_hub_cache(folder: Path, cache: Path) -> Path:
    """The same model as the hub's cache keeps it: links to blobs."""
    snapshot, blobs = cache / "snapshots" / "a1b2", cache / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(sorted(folder.iterdir())):
        file.rename(blobs / str(number))
        (snapshot / file.name).symlink_to(Path("..", "..", "blobs", str(number)))
    return snapshot


def test_links_of_the_hubs_cache_are_followed(folder, tmp_path):
    expected = (folder / "tokenizer.json").read_bytes()
    snapshot = as_hub_cache(folder, tmp_path / "models--some--model")
    assert saved(snapshot, tmp_path / "out")["tokenizer.json"] == expected
    (tmp_path / "link").symlink_to(snapshot)
    assert saved(tmp_path / "link", tmp_path / "again")["tokenizer.json"] == expected


@pytest.mark.parametrize("name", ["merges.txt", "tokenizer.json", "chat_template.jinja"])
def test_links_out_of_the_folder_are_refused(folder, tmp_path, name):
    (tmp_path / "secret").write_text('{"password": 1}')
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(tmp_path / "secret")
    with pytest.raises(InputError, match=rf"{name} is a link to .*secret, outside"):
        open_source(folder)


def test_a_cache_whose_blobs_lie_elsewhere_is_refused(folder, tmp_path):
    snapshot = as_hub_cache(folder, tmp_path / "models--some--model")
    blobs = tmp_path / "models--some--model" / "blobs"
    blobs.rename(tmp_path / "elsewhere")
    blobs.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="outside the model's folder"):
        open_source(snapshot)


def test_a_linked_folder_of_templates_is_refused(folder, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "rag.jinja").write_text("secret")
    (folder / "additional_chat_templates").symlink_to(tmp_path / "other")
    with pytest.raises(InputError, match=r"rag\.jinja is a link"):
        open_source(folder)


def test_a_folder_in_the_place_of_a_file_is_refused(folder):
    (folder / "merges.txt").mkdir()
    with pytest.raises(InputError, match=r"merges\.txt is not a file"):
        open_source(folder)


@pytest.mark.parametrize("target", ["missing", "own.model"])
def test_a_link_that_leads_nowhere_is_no_file(folder, tmp_path, target):
    (folder / "merges.txt").symlink_to("missing")
    assert "merges.txt" not in saved(folder, tmp_path / "out")
    (folder / "own.model").symlink_to(target)
    with pytest.raises(InputError, match=r"own\.model is"):
        open_source(folder, trust_remote_code=True)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("generation_config.json", "[]"),
        ("generation_config.json", '{"compile_config": 3, "cache_implementation": []}'),
        ("tokenizer_config.json", "{"),
        ("processor_config.json", "\xff"),
        ("special_tokens_map.json", "[" * 100_000),
    ],
)
def test_a_damaged_file_is_refused_at_the_start(folder, name, text):
    (folder / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=name):
        open_source(folder)


def test_a_generation_config_that_is_not_valid_is_written_as_it_is(folder, tmp_path):
    (folder / "generation_config.json").write_text(json.dumps(GENERATION))
    files = saved(folder, tmp_path / "out")
    assert json.loads(files["generation_config.json"]) == GENERATION
    model = tiny_model()
    for name, value in GENERATION.items():
        setattr(model.generation_config, name, value)
    written = saved(model, tmp_path / "object")["generation_config.json"]
    assert GENERATION.items() <= json.loads(written).items()


def with_code(folder: Path) -> None:
    for name in ("config.json", "tokenizer_config.json"):
        entries = json.loads((folder / name).read_text())
        entries["auto_map"] = {"AutoConfig": "own.Own", "AutoTokenizer": ["own.Own", None]}
        (folder / name).write_text(json.dumps(entries))
    (folder / "own.py").write_text("")


def test_entries_that_name_code_travel_with_the_code_only(folder, tmp_path):
    plain = saved(folder, tmp_path / "plain")
    with_code(folder)
    source = open_source(folder)
    files = saved(folder, tmp_path / "out")
    assert json.loads(files["tokenizer_config.json"]) == json.loads(plain["tokenizer_config.json"])
    assert files["tokenizer.json"] == plain["tokenizer.json"] and "own.py" not in files
    (note,) = source.notes
    assert "config.json, tokenizer_config.json" in note and "trust" in note
