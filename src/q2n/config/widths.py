"""Layers that differ in width: the widths that a method can take, and the file that lists them.

    # q2n allocation: 3.02 bits per weight
    model.layers.0.self_attn.q_proj: 4
    model.layers.0.mlp.down_proj: q8_0        in GGUF the type of the blocks

Every quantized layer has one line. A run writes such a file into its checkpoint; it may be edited
and given back.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from q2n.block_types import BLOCK_TYPES
from q2n.config.options import table
from q2n.config.settings import Settings
from q2n.disk.failures import reason
from q2n.errors import InputError
from q2n.option_types import Width, shown

FILE = "allocation.yaml"
"""In a checkpoint."""
BITS = (2, 3, 4, 8)
TYPES = ("q2_0", "iq4_nl", "q5_0", "q8_0")
"""Of blocks of 32 or 64 columns, which divide the rows of most models."""


def by_width(settings: Settings) -> dict[Width, Settings]:
    """The same settings at each width that the method takes.

    Raises:
        InputError: it has no bits.
    """
    own = settings.options[settings.method]
    options = table().owners[settings.method]
    if "bits" not in own:
        raise InputError(f"--allocate needs a method with bits, and {settings.method} has none")
    if own.get("grid") in BLOCK_TYPES:
        return {x: _with(settings, grid=x, bits=BLOCK_TYPES[x].bits) for x in TYPES}
    return {x: _with(settings, bits=x) for x in BITS if options["bits"].kind.accepts(x)}


def _with(settings: Settings, **changed: Any) -> Settings:
    own = {**settings.options[settings.method], **changed}
    return replace(settings, options={**settings.options, settings.method: own})


def read_widths(file: str | Path, widths: Iterable[Width]) -> dict[str, Width]:
    """The width of each layer that a file lists.

    Args:
        widths: those that the method takes.

    Raises:
        InputError: the file cannot be read, or holds something else.
    """
    content = _bytes_of(file)
    try:
        values = yaml.safe_load(content.decode("utf-8"))
    except (ValueError, RecursionError, yaml.YAMLError) as cause:
        raise InputError(f"allocation {file} is no YAML: {' '.join(str(cause).split())}") from cause
    if not isinstance(values, dict) or not values:
        raise InputError(f"allocation {file} lists no layers; a line is NAME: BITS")
    known = list(widths)
    for name, width in values.items():
        if not isinstance(name, str) or width not in known or isinstance(width, bool):
            raise InputError(
                f"allocation {file}: {shown(name)} has {shown(width)}; a layer has one of "
                f"{', '.join(map(str, known))}"
            )
    return values


def widths_file_sha256(file: str | Path) -> str:
    """Of what a file of widths holds.

    Raises:
        InputError: it cannot be read.
    """
    return hashlib.sha256(_bytes_of(file)).hexdigest()


def _bytes_of(file: str | Path) -> bytes:
    try:
        return Path(file).read_bytes()
    except OSError as cause:
        raise InputError(
            f"allocation {file} cannot be read ({reason(cause)}); give the {FILE} of a checkpoint"
        ) from cause


def check_names(widths: Mapping[str, Width], layers: Iterable[str]) -> None:
    """Refuse widths that are not those of these layers.

    Raises:
        InputError: a layer is not there, or has no width.
    """
    layers = list(layers)
    for name in widths.keys() - {*layers}:
        near = get_close_matches(name, layers, 1)
        hint = f". Did you mean {near[0]!r}?" if near else ""
        raise InputError(f"the allocation has {shown(name)}, which is not quantized here{hint}")
    for name in layers:
        if name not in widths:
            raise InputError(
                f"the allocation has no width for {name}: add it, or leave the layer in full "
                "precision with --ignore"
            )


def widths_text(widths: Mapping[str, Width], bits: float) -> str:
    """The file."""
    lines = [f"{name}: {width}" for name, width in widths.items()]
    head = f"# q2n allocation: {bits:.3f} bits per weight; q2n quantize --allocation FILE takes it"
    return "\n".join([head, *lines]) + "\n"
