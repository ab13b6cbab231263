"""What `--runtime` stands for, what wins over it, and what it refuses."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import save_tiny, tiny_model

import q2n
from q2n.config.owners import build_plan
from q2n.config.reading import read_settings
from q2n.config.runtimes import RUNTIMES, check_sizes, runtime_notes
from q2n.config.settings import RunSettings
from q2n.errors import InputError
from q2n.formats import FORMATS
from q2n.models.source import open_source


def read(**settings) -> RunSettings:
    return read_settings(settings).run


def written(**settings) -> str:
    """The format of the checkpoint."""
    return build_plan(read_settings(settings)).format.name


@pytest.mark.parametrize("name", RUNTIMES)
def test_every_runtime_runs_what_it_stands_for(name: str) -> None:
    loads = RUNTIMES[name].loads[0]
    given = {"runtime": name, "bits": loads.bits[-1]}
    settings = read_settings(given).flat()
    assert written(**given) == loads.format
    assert RUNTIMES[name].settings.items() <= settings.items()
    assert read_settings(settings).flat() == settings
    assert {one.format for one in RUNTIMES[name].loads} <= set(FORMATS)


def test_no_runtime_changes_nothing() -> None:
    assert written() == "compressed-tensors" and read().dtype == "auto"
    assert read(runtime="transformers") == RunSettings(runtime="transformers")


def test_what_is_set_wins() -> None:
    settings = read_settings({"runtime": "mlx", "group_size": 128, "dtype": "float32"})
    assert settings.flat()["group_size"] == 128 and settings.run.dtype == "float32"
    assert read(runtime="transformers", format="native").format == "native"
    assert read(runtime="vllm", format="gptq_v2", symmetric=True).format == "gptq_v2"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"runtime": "mlx", "format": "native"}, "mlx does not load --format native; .* mlx$"),
        ({"runtime": "vllm", "format": "mlx"}, "it loads compressed-tensors, gptq_v2, native$"),
        ({"runtime": "mlx", "group_size": -1}, "groups of -1; it runs groups of 32, 64, 128$"),
        ({"runtime": "vllm", "group_size": 16}, "groups of 16; it runs groups of -1, 32, 64, 128$"),
        ({"runtime": "vllm", "format": "gptq_v2"}, "asymmetric grids; add --symmetric$"),
        ({"runtime": "vllm", "format": "gptq_v2", "bits": 3}, "3 bits; it runs 4, 8$"),
        ({"runtime": "openvino", "bits": 3}, "3 bits; it runs 4$"),
        ({"runtime": "openvino", "symmetric": False}, "asymmetric"),
        (
            {"runtime": "vllm", "format": "native", "kv_bits": 4},
            "vllm with --format native does not run --kv-bits 4; leave it out$",
        ),
        ({"runtime": "vllm", "activation_bits": 4}, "--activation-bits 4; leave it out$"),
        ({"runtime": "openvino", "activation_bits": 8}, "--activation-bits 8; leave it out$"),
        (
            {"runtime": "vllm", "activation_bits": 8, "bits": 3, "symmetric": True},
            "3 bits; it runs 4, 8$",
        ),
        (
            {"runtime": "vllm", "method": "gptq", "rotate": True},
            "--rotate hadamard; add --rotate-online false$",
        ),
        (
            {"runtime": "vllm", "rotate": True, "rotate_online": False, "kv_bits": 4},
            "--kv-bits 4; leave it out$",
        ),
        ({"rotate_online": False}, "'rotate_online' does nothing without --rotate:"),
        (
            {"nullspace": "paper", "rule": "matrix_rank", "threshold": 0.2},
            "'threshold' does nothing without --rule ratio:",
        ),
        ({"runtime": "ollama"}, "runtime is 'ollama'"),
    ],
)
def test_refusals_say_what_it_runs(settings: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        written(**settings)


@pytest.mark.parametrize(
    ("settings", "format"),
    [
        ({"method": "quip"}, "native"),
        ({"method": "quip", "runtime": "vllm"}, "native"),
        ({"method": "quip", "runtime": "transformers", "format": "dequantized"}, "dequantized"),
        ({"method": "exl3"}, "exl3"),
        ({"method": "quarot", "runtime": "transformers"}, "native"),
        ({"rotate": True, "rotate_online": False}, "compressed-tensors"),
        ({"grid": "q4_k"}, "gguf"),
        ({"format": "mlx"}, "mlx"),
    ],
)
def test_without_a_format_the_first_that_fits_is_written(settings: dict, format: str) -> None:
    assert written(**settings) == format


def test_a_format_that_does_not_fit_says_which_do() -> None:
    with pytest.raises(InputError, match="gguf cannot hold what quip stores .*: native, dequant"):
        written(method="quip", runtime="llama.cpp")
    with pytest.raises(InputError, match="^mlx cannot hold what quip stores .*: native, dequant"):
        written(method="quip", runtime="mlx")
    with pytest.raises(InputError, match="^compressed-tensors cannot hold .*: native, dequant"):
        written(method="quip", runtime="openvino")


def test_mlx_has_groups_of_its_own_size() -> None:
    assert read_settings({"format": "mlx"}).flat()["group_size"] == 64
    assert read_settings({"format": "mlx", "group_size": 32}).flat()["group_size"] == 32


def test_another_format_than_the_usual_one_is_said(tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "model")
    done = q2n.quantize(
        model, tmp_path / "out", method="leanquant", bits=3, corpus="sotu", windows=2, length=32
    )
    assert done.record["settings"]["format"] == "native"
    assert done.record["notes"] == [
        "Written as native, for compressed-tensors cannot hold what leanquant stores here "
        "(codebook layers); --format chooses"
    ]
    done = q2n.quantize(model, tmp_path / "rtn", method="rtn", bits=3)
    assert done.record["settings"]["format"] == "compressed-tensors" and not done.record["notes"]


def test_text_settings_of_a_method_that_reads_none_are_said(tmp_path: Path) -> None:
    model, text = save_tiny(tmp_path / "model"), {"corpus": "sotu", "windows": 2, "length": 32}
    done = q2n.quantize(model, tmp_path / "rtn", method="rtn", bits=3, **text)
    assert done.record["notes"] == [
        "rtn with these settings reads no calibration text: corpus and windows do nothing"
    ]
    assert not q2n.quantize(model, tmp_path / "gptq", bits=3, **text).record["notes"]


def test_any_runtime_takes_a_rotation_that_weights_hold() -> None:
    own = {"rotate": "learned", "rotate_online": False, "rotate_weight_bits": 4, "rotate_steps": 5}
    for name, runtime in RUNTIMES.items():
        settings = read_settings({"runtime": name, **own}).flat()
        assert settings["rotate_online"] is False
        assert written(runtime=name, **own) == runtime.loads[0].format


def test_rounded_inputs_need_no_gpu_at_eight_bits() -> None:
    settings = {"runtime": "vllm", "bits": 8, "symmetric": True, "activation_bits": 8}
    assert written(**settings, activation_clip_ratio=1.0) == "compressed-tensors"
    asked = ("vllm", "compressed-tensors")
    assert runtime_notes(*asked, 8, 8) == runtime_notes(*asked, 4) == []
    assert "4 bits on GPUs only" in runtime_notes(*asked, 4, 8)[0]


def test_sizes_that_a_kernel_does_not_take() -> None:
    check_sizes("vllm", "compressed-tensors", "q_proj", (64, 96))
    check_sizes("transformers", "compressed-tensors", "q_proj", (9, 7))
    for shape in ((40, 64), (64, 40)):
        with pytest.raises(InputError, match="multiples of 32, and q_proj has"):
            check_sizes("vllm", "compressed-tensors", "q_proj", shape)


def test_a_layer_is_refused_before_any_work(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model", intermediate_size=112)
    with pytest.raises(InputError, match="gate_proj has 64 and 112"):
        q2n.quantize(folder, tmp_path / "out", method="rtn", runtime="vllm")
    assert not (tmp_path / "out").exists()


def test_float32_is_written_in_16_bits_and_said(tmp_path: Path) -> None:
    done = q2n.quantize(
        save_tiny(tmp_path / "model"), tmp_path / "out", method="rtn", bits=3, runtime="vllm"
    )
    tensors = load_file(tmp_path / "out" / "model.safetensors").values()
    assert {x.dtype for x in tensors if x.is_floating_point()} == {torch.bfloat16}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    assert done.record["notes"] == [
        "vllm runs 3 bits on GPUs only, where q2n's tests have not run it",
        "The float32 model is run and written in bfloat16",
    ]


@pytest.mark.parametrize("own", [torch.float16, torch.bfloat16, torch.float32])
def test_half_changes_float32_only(tmp_path: Path, own: torch.dtype) -> None:
    model = tiny_model().to(own)
    model.save_pretrained(tmp_path)
    expected = torch.bfloat16 if own == torch.float32 else own
    assert open_source(model, dtype="half").dtype == expected
    assert open_source(tmp_path, dtype="half").dtype == expected
    assert open_source(tmp_path).dtype == own
