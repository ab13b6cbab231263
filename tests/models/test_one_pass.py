"""One reading of a file gives its digest and tells NaN and Inf anywhere in it."""

import hashlib

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import save_tiny

from q2n.errors import NumericalError
from q2n.models import one_pass
from q2n.models.one_pass import digest_and_extremes
from q2n.models.source import open_source

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2)


@pytest.mark.parametrize("piece", [8, 64, 2**20])
def test_the_digest_is_that_of_the_file(monkeypatch, tmp_path, piece):
    monkeypatch.setattr(one_pass, "PIECE", piece)
    generator = torch.Generator().manual_seed(0)
    tensors = {str(dtype): torch.randn(7, 3, generator=generator).to(dtype) for dtype in DTYPES} | {
        "whole": torch.arange(5),
        "none": torch.zeros(0, 4),
        "one": torch.tensor(2.0),
    }
    file = tmp_path / "x.safetensors"
    save_file(tensors, file, metadata={"format": "pt"})
    digest, extremes = digest_and_extremes(file)
    assert digest == hashlib.sha256(file.read_bytes()).digest()
    assert extremes.keys() == tensors.keys() - {"whole", "none"}
    for name, pair in extremes.items():
        values = tensors[name].double()
        assert pair.tolist() == [values.min(), values.max()]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_one_bad_number_shows(tmp_path, dtype, bad):
    file = tmp_path / "x.safetensors"
    values = torch.randn(1001, generator=torch.Generator().manual_seed(0))
    values[700] = bad
    save_file({"x": values.to(dtype)}, file)
    assert not digest_and_extremes(file)[1]["x"].isfinite().all()


@pytest.mark.parametrize(
    "name", ["model.layers.2.mlp.up_proj.weight", "lm_head.weight", "mtp.layers.0.proj.weight"]
)
def test_nan_anywhere_in_a_checkpoint_is_named(tmp_path, name):
    folder = save_tiny(tmp_path / "model", tie_word_embeddings=False)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors["mtp.layers.0.proj.weight"] = torch.ones(4, 4)
    tensors[name].flatten()[3] = float("nan")
    save_file(tensors, file)
    with pytest.raises(NumericalError, match=rf"{name}.*NaN or Inf in torch\.float32"):
        open_source(folder).digest()


def test_what_overflows_in_the_dtype_of_the_run_is_named(tmp_path):
    """1e6 is a number in float32 and Inf in float16; in a tensor that is copied it stays."""
    folder = save_tiny(tmp_path / "model")
    file, name = folder / "model.safetensors", "model.layers.1.mlp.up_proj.weight"
    save_file({**load_file(file), "extra": torch.tensor(1e6)}, file)
    open_source(folder, dtype="float16").digest()
    tensors = load_file(file)
    tensors[name][0, 0] = 1e6
    save_file(tensors, file)
    open_source(folder).digest()
    with pytest.raises(NumericalError, match=rf"{name}.*float16"):
        open_source(folder, dtype="float16").digest()
