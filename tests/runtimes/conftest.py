"""`runtime(name)` skips a test where the environment is not there, before its model is made."""

from collections.abc import Callable
from pathlib import Path

import pytest
from runtimes.environments import interpreter


@pytest.fixture
def runtime() -> Callable[[str], Path]:
    return interpreter
