"""What the harness does to its surroundings while it works: it prints, and it goes to the network.

Its bars and its log lines are not those of q2n, and where tasks come from local files nothing may
be fetched. All settings are put back.
"""

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from typing import Any

from huggingface_hub import constants

_EVALUATE = "HF_EVALUATE_OFFLINE"
LOGGERS = ("lm_eval", "datasets", "transformers.tokenization_utils_base")


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """No bars and no log lines of the harness; what it prints goes to standard error."""
    from tqdm import tqdm

    levels = {name: logging.getLogger(name).level for name in LOGGERS}
    started = tqdm.__init__

    def without_bar(self: Any, *args: Any, **options: Any) -> None:
        started(self, *args, **{**options, "disable": True})

    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    tqdm.__init__ = without_bar
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        tqdm.__init__ = started
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


@contextlib.contextmanager
def offline() -> Iterator[None]:
    """The Hugging Face libraries take everything from the disk."""
    import datasets.config

    switches: list[tuple[Any, str]] = [
        (constants, "HF_HUB_OFFLINE"),
        (datasets.config, "HF_HUB_OFFLINE"),
        (datasets.config, "HF_DATASETS_OFFLINE"),
    ]
    if (metrics := sys.modules.get("evaluate.config")) is not None:
        switches.append((metrics, "HF_EVALUATE_OFFLINE"))
    before = [(module, name, getattr(module, name)) for module, name in switches]
    variable = os.environ.get(_EVALUATE)
    os.environ[_EVALUATE] = "1"  # for the library of metrics, where it is imported only now
    try:
        for module, name in switches:
            setattr(module, name, True)
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)
        os.environ.pop(_EVALUATE)
        if variable is not None:
            os.environ[_EVALUATE] = variable
