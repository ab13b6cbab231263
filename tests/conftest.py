"""What every test runs under: no network, few threads, shapes of all tensors checked."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers reads it

import pytest
import torch
from jaxtyping import install_import_hook

# Checks every annotation of q2n as it runs. It must be in place before q2n is imported.
# A numba kernel says `@no_type_check` below its `@njit`: numba cannot compile the check.
install_import_hook("q2n", "shapes.checked")

torch.set_num_threads(min(2, os.cpu_count() or 1))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
