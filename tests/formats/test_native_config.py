"""What a native checkpoint says of itself: runtime work, and errors of one line if damaged."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from formats.native_folders import FORMAT, quantization_config, written
from formats.tiny_models import (
    llama,
    random_layer,
    random_layers,
)
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM

from q2n.errors import InputError
from q2n.formats.load import load_model
from q2n.formats.runtime import ATTACH
from q2n.layers.uniform import UniformLinear

WIDE = {"shape": [64, 64], "dtype": "uint8", "bits": 9}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    model = llama()
    return written(tmp_path / "out", model, random_layers(model, 3, 32, False, torch.float32))


def change_config(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    config = json.loads(file.read_text())
    config["quantization_config"] |= changes
    file.write_text(json.dumps(config))


def test_entries_that_do_not_fit_are_not_written() -> None:
    layer = random_layer((64, 64), 3, -1, False, torch.float32)
    lying = UniformLinear(**{**vars(layer), "bits": 2})
    with pytest.raises(ValueError, match="does not fit into 2 bits"):
        FORMAT.codec.encode("q_proj", lying, torch.float32)


def test_an_unknown_or_damaged_config_gets_one_line(out: Path) -> None:
    groups = quantization_config(out)["layer_groups"]
    for changes, words in [
        ({"version": 2}, "version 2 of the native layout"),
        ({"layer_groups": [{"layers": ["x"]}]}, "damaged.*shape"),
        ({"layer_groups": [{**groups[0], "tensors": {"codes": WIDE}}]}, "damaged.*9 bits"),
        ({"layer_groups": [{**groups[0], "kind": "magic"}]}, "'magic' are not known.*uniform"),
        ({"runtime": {"hum": 1}}, "needs 'hum' while it runs"),
    ]:
        change_config(out, **{"version": 3, "layer_groups": groups, **changes})
        for read in (AutoModelForCausalLM.from_pretrained, load_model):
            with pytest.raises(InputError, match=words) as caught:
                read(out)
            assert "\n" not in str(caught.value)


def test_damaged_tensors_get_one_line(out: Path) -> None:
    file = out / "model.safetensors"
    whole, key = load_file(file), "model.layers.1.mlp.up_proj.codes"
    without = {name: tensor for name, tensor in whole.items() if name != key}
    for tensors, words in [
        (without, f"{key} is missing"),
        ({**whole, key: whole[key][:-1]}, f"{key} has shape .575,., not .576,."),
    ]:
        save_file(tensors, file, metadata={"format": "pt"})
        for read in (AutoModelForCausalLM.from_pretrained, load_model):
            with pytest.raises(InputError, match=words):
                read(out)
    save_file(whole, file, metadata={"format": "pt"})
    with pytest.raises(InputError, match="LlamaModel has no linear.*AutoModelForCausalLM"):
        AutoModel.from_pretrained(out)


def test_runtime_work_is_attached_by_both_readers(out: Path, monkeypatch) -> None:
    seen: list[tuple[str, Any]] = []
    monkeypatch.setitem(ATTACH, "hum", lambda model, x: seen.append((type(model).__name__, x)))
    change_config(out, runtime={"hum": {"pitch": [440]}})
    for read in (AutoModelForCausalLM.from_pretrained, load_model):
        read(out)
    assert seen == 2 * [("LlamaForCausalLM", {"pitch": [440]})]
