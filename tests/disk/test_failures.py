"""A message says what the operating system says, and advises what helps there."""

import errno
import os

import pytest
from safetensors import SafetensorError

from q2n.disk.failures import reason, remedy
from q2n.disk.space import require_space
from q2n.errors import InputError


@pytest.mark.parametrize(
    ("cause", "said", "advice"),
    [
        (OSError(errno.ENOSPC, "full", "file"), os.strerror(errno.ENOSPC), "free space"),
        (OSError(errno.EACCES, "no"), os.strerror(errno.EACCES), "may write"),
        (OSError(errno.EROFS, "no"), os.strerror(errno.EROFS), "may write"),
        (OSError(errno.EIO, "no"), os.strerror(errno.EIO), "another --output"),
        (OSError("odd\ntext"), "odd text", "another --output"),
        (SafetensorError("I/O error: No space (os error 28)"), os.strerror(28), "free space"),
        (SafetensorError("no number"), "no number", "another --output"),
    ],
)
def test_reason_and_remedy(cause, said, advice):
    assert reason(cause) == said and advice in remedy(cause)


def test_a_disk_that_is_too_small_is_refused_with_both_numbers(tmp_path):
    require_space(tmp_path, 0.0, "it needs")
    with pytest.raises(
        InputError, match=r"it needs 1000000000.00 GB, and .* has \d+\.\d\d GB free"
    ):
        require_space(tmp_path, 1e18, "it needs")
