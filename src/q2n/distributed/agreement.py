"""Do all ranks have the same model, text, settings and libraries? Asked before any work."""

import json
from collections.abc import Mapping
from typing import Any

from q2n.distributed.ranks import Ranks
from q2n.errors import InputError


def tell(ranks: Ranks, values: Any) -> Any:
    """JSON values of the first rank, on every rank. What the others give is not looked at."""
    data = json.dumps(values).encode() if ranks.is_first else b""
    return json.loads(ranks.gather(data)[0])


def require_agreement(ranks: Ranks, values: Mapping[str, Any]) -> None:
    """Compare JSON values, hashes of files among them.

    Raises:
        InputError: on every rank, naming one that differs from the first, and what differs.
    """
    first, *others = map(json.loads, ranks.gather(json.dumps(dict(values)).encode()))
    for rank, other in enumerate(others, 1):
        different = [
            f"{key} is {first.get(key)!r} on rank 0, {other.get(key)!r} on rank {rank}"
            for key in sorted(first.keys() | other.keys())
            if first.get(key) != other.get(key)
        ]
        if different:
            raise InputError(
                f"rank {rank} would do something else than rank 0: {'; '.join(different)}. Give "
                "all ranks the same files, settings and versions"
            )
