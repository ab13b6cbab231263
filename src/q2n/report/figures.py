"""Records as pictures."""

import os
from collections.abc import Mapping
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.figure import Figure

from q2n.errors import InputError
from q2n.evaluation.block_costs import BlockCosts
from q2n.report.record import LayerRecord, RunRecord


def require_picture(file: Path) -> None:
    """Refuse a name under which no picture can be written, before there is one.

    Raises:
        InputError: no format has this ending, or there is no such folder.
    """
    formats = FigureCanvasBase.get_supported_filetypes()
    if file.suffix.lower().lstrip(".") not in formats:
        raise InputError(
            f"{file} is no name of a picture; they end in .{', .'.join(sorted(formats))}"
        )
    if not file.parent.is_dir() or not os.access(file.parent, os.W_OK):
        raise InputError(f"{file} cannot be written: {file.parent} is no folder to write into")


def plot_layers(record: RunRecord, file: Path) -> None:
    """Output error (a ratio of squares) of every quantized linear, block by block, and the mean of
    the factors on its scales: alpha of the null-space step or, without it, the output scales.

    One line per kind of linear (q_proj, ...). With the null-space step dashed lines are the
    error before it.

    Raises:
        InputError: the record holds no output errors, or the file cannot be written.
    """
    layers = record.layers
    kinds = _by_kind(layers, "output_error")
    if not kinds:
        raise InputError("nothing to plot: no layer of this record has an output error")
    alpha, scales = _by_kind(layers, "alpha_mean"), _by_kind(layers, "scales_mean")
    stepped = bool(alpha or scales)
    figure = Figure(figsize=(11 if stepped else 6, 4), layout="constrained")
    axes = figure.subplots(1, 2 if stepped else 1, squeeze=False)[0]
    _lines(axes[0], kinds, "-")
    axes[0].set(yscale="log", xlabel="block", ylabel="|(W - Q) X|² / |W X|²", title="output error")
    if alpha:
        _lines(axes[0], _by_kind(layers, "output_error_before"), "--", labelled=False)
        axes[0].set_title("output error (dashed: before the step)")
    if stepped:
        _lines(axes[1], alpha or scales, "-")
        title = "alpha" if alpha else "output scales"
        axes[1].set(xlabel="block", ylabel="mean over factors", title=title)
    axes[-1].legend(fontsize="small", ncols=2)
    _save(figure, file)


def plot_costs(costs: BlockCosts, file: Path) -> None:
    """The divergence that each block costs alone and with all before it, and the output error of
    every linear, block by block.

    Raises:
        InputError: the file cannot be written.
    """
    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for which, label in (("alone", "alone"), ("up_to_here", "up to here")):
        left.plot([getattr(block, which).divergence for block in costs.blocks], label=label)
    left.set(yscale="log", xlabel="block", ylabel="KL, nats a token", title="blocks")
    layers: Series = {}
    for number, block in enumerate(costs.blocks):
        for name, change in block.layers.items():
            blocks, errors = layers.setdefault(name.rsplit(".", 1)[-1], ([], []))
            blocks.append(number)
            errors.append(change.relative_error)
    _lines(right, layers, "-")
    right.set(yscale="log", xlabel="block", ylabel="|(W - Q) X|² / |W X|²", title="layers")
    for axes in (left, right):
        axes.legend(fontsize="small", ncols=2)
    _save(figure, file)


def _save(figure: Figure, file: Path) -> None:
    try:
        figure.savefig(file, dpi=120)
    except (OSError, ValueError, RuntimeError) as cause:
        raise InputError(f"{file} cannot be written as a picture: {cause}") from cause


Series = dict[str, tuple[list[int], list[float]]]
"""Kind of linear -> block numbers and values."""


def _by_kind(layers: Mapping[str, LayerRecord], key: str) -> Series:
    series: Series = {}
    for name, layer in layers.items():
        if key in layer.notes:
            block = next((int(part) for part in name.split(".") if _is_number(part)), 0)
            blocks, values = series.setdefault(name.rsplit(".", 1)[-1], ([], []))
            blocks.append(block)
            values.append(layer.notes[key])
    return series


def _is_number(part: str) -> bool:
    return part.isascii() and part.isdecimal() and len(part) < 9


def _lines(axes: Axes, series: Series, style: str, labelled: bool = True) -> None:
    for color, (kind, (blocks, values)) in enumerate(series.items()):
        axes.plot(blocks, values, style, color=f"C{color}", label=kind if labelled else None)
