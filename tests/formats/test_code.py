"""A checkpoint's own code, and the entries that name it, are written where code may run only."""

import json
import sys
from pathlib import Path

import pytest
import torch
from tiny import save_tiny

import q2n
from q2n.formats.load import load_model

CODE = """
from transformers import LlamaConfig, LlamaForCausalLM
class OurConfig(LlamaConfig):
    model_type = 'ours'
class OurModel(LlamaForCausalLM):
    config_class = OurConfig
"""
CLASSES = {"AutoConfig": "ours.OurConfig", "AutoModelForCausalLM": "ours.OurModel"}
TOKENS = torch.arange(12).unsqueeze(0)


def with_code(folder: Path, model_type: str) -> Path:
    save_tiny(folder)
    (folder / "ours.py").write_text(CODE)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": model_type, "auto_map": CLASSES}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_without_trust_the_built_in_class_is_written(tmp_path: Path) -> None:
    folder = with_code(tmp_path / "model", "llama")
    done = q2n.quantize(folder, tmp_path / "out", method="rtn", bits=4, format="native")
    assert "auto_map" not in json.loads((tmp_path / "out" / "config.json").read_text())
    assert not (tmp_path / "out" / "ours.py").exists()
    (note,) = done.record["notes"]
    assert "config.json" in note and note in (tmp_path / "out" / "README.md").read_text()
    assert type(load_model(tmp_path / "out")).__name__ == "LlamaForCausalLM"


def test_with_trust_the_code_comes_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = str(tmp_path / "modules")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", cache)
    monkeypatch.setattr("sys.path", [*sys.path])
    folder = with_code(tmp_path / "model", "ours")
    done = q2n.quantize(
        folder, tmp_path / "out", method="rtn", bits=4, format="native", trust_remote_code=True
    )
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["auto_map"].keys() == CLASSES.keys() and done.record["notes"] == []
    loaded = load_model(tmp_path / "out", trust_remote_code=True)
    assert type(loaded).__name__ == "OurModel"
    assert loaded(TOKENS).logits.isfinite().all()
