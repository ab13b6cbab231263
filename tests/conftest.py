"""What every test runs under: no network, few threads, shapes of all tensors checked."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers reads it

# Threads of this process, before torch and numba read them. Processes side by side that use all
# cores each take many times as long.
os.environ.update(
    dict.fromkeys(
        ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"),
        "1" if "PYTEST_XDIST_WORKER" in os.environ else str(min(2, os.cpu_count() or 1)),
    )
)

import pytest
import torch
from jaxtyping import install_import_hook

# Checks every annotation of q2n as it runs. It must be in place before q2n is imported.
# A numba kernel says `@no_type_check` below its `@njit`: numba cannot compile the check.
install_import_hook("q2n", "shapes.checked")

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What needs the real model is slow; what needs a GPU is skipped where there is none."""
    for item in items:
        if {"smollm2", "smollm2_head"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The packaged SmolLM2-135M, converted once a session into a cache of its own."""
    from q2n.models.packaged import SMOLLM2, packaged_checkpoint

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        folder = packaged_checkpoint(SMOLLM2)
        assert folder is not None
        yield folder


@pytest.fixture(scope="session")
def smollm2_head(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first two blocks of SmolLM2-135M as a checkpoint."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("smollm2-head")
    for file in smollm2.glob("*.json"):
        shutil.copyfile(file, folder / file.name)
    config = json.loads((smollm2 / "config.json").read_text())
    config["num_hidden_layers"] = 2
    (folder / "config.json").write_text(json.dumps(config))
    later = tuple(f"model.layers.{index}." for index in range(2, 30))
    tensors = load_file(smollm2 / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(later)}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
