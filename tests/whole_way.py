"""A tiny model and its text in a folder, quantized through the front door."""

from pathlib import Path

import q2n

SETTINGS = {"bits": 3, "output_scales": True, "windows": 4, "length": 16}


def quantize(place: Path, output: str, **settings):
    return q2n.quantize(
        place / "model",
        place / output / "checkpoint",
        corpus=str(place / "text.txt"),
        **{**SETTINGS, **settings},
    )


def files_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if "timings" not in file.name}
