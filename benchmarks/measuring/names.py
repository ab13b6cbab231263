"""Names of rows, settings and variants in results that were measured under former ones."""

from typing import Any

FORMER: dict[str, dict[str, str]] = {
    "method": {
        "quip even levels": "ldlq incoherence",
        "quip uniform": "ldlq incoherence",
        "quip spread 2.4": "ldlq incoherence clip_sigma 2.4",
        "quip lloyd-max": "ldlq incoherence lloyd-max",
    },
    "setting": {
        "2pc": "W2 per channel",
        "3pc": "W3 per channel",
        "2g64": "W2 g64",
        "4g64": "W4 g64",
    },
    "variant": {
        "output row": "own scales per row",
        "output group": "own scales",
        "cross row": "scales per row",
        "cross group": "scales",
        "cross principal": "scales principal",
        "cross spectral": "scales spectral",
        "auto": "scales held out",
        "correct, output group": "correct, own scales",
        "correct, cross row": "correct, scales per row",
        "good, auto": "good, held out",
    },
}
"""Part of a cell's key -> former name -> name."""


def renamed(line: dict[str, Any]) -> dict[str, Any]:
    """A line of a results file under the names of today.

    Lines without a protocol are from before there were any, of models whose tokenizers add no BOS:
    their windows are those of q2n's protocol.
    """
    names = {
        key: FORMER.get(key, {}).get(value, value) if isinstance(value, str) else value
        for key, value in line.items()
    }
    return {"protocol": "q2n", **names}
