"""Whether the Hugging Face hub answers, asked with a deadline before anything is fetched from it.

Its client waits without end for a hub that accepts a connection and then says nothing, and
retries for half a minute where there is no network. What has begun to arrive may take its time.
"""

import contextlib
import threading

from huggingface_hub import constants, get_session

PATIENCE = 4.0
"""Seconds within which the hub must answer: several round trips on a slow line."""


def hub_answers() -> bool:
    """Whether the hub answers any request within `PATIENCE`.

    In a thread, because looking up a host name has no time limit of its own.
    """
    answered = threading.Event()

    def ask() -> None:
        with contextlib.suppress(Exception):
            get_session().head(constants.ENDPOINT, timeout=PATIENCE)
            answered.set()

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    return answered.is_set()
