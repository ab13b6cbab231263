"""Records as tables on a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from os.path import commonprefix
from typing import TYPE_CHECKING, Any

from rich import box
from rich.markup import escape
from rich.table import Table

from q2n.evaluation.results import Comparison, Fidelity
from q2n.report.block_record import LayerRecord
from q2n.report.record import RunRecord
from q2n.report.table_model import Quantity, rounded

if TYPE_CHECKING:
    from q2n.evaluation.block_costs import BlockCosts, Replaced


def layer_table(record: RunRecord) -> Table:
    """One row per quantized linear: bits, output error, what the null-space step and the output
    scales did."""
    layers = record.layers
    stepped = any("alpha_mean" in layer.notes for layer in layers.values())
    scaled = any("scales_mean" in layer.notes for layer in layers.values())
    prefix = commonprefix(list(layers)).rpartition(".")[0]
    title = f"{len(layers)} quantized linear{'s' * (len(layers) != 1)}"
    title += f" of {escape(prefix)}" if prefix else ""
    table = Table(title=title, box=box.SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("layer", no_wrap=True)
    titles = ["bits", "error %"]
    if stepped:
        titles += ["before", "rank", "null %", "alpha", "min", "max"]
    if scaled:
        titles += ["scales", "min", "max"]
    for title in titles:
        table.add_column(title, justify="right", no_wrap=True)
    for name, layer in layers.items():
        cells = [f"{layer.bits_per_weight:.2f}", _percent(layer.output_error)]
        if stepped:
            cells += _step_cells(layer)
        if scaled:
            cells += _factor_cells(layer, "scales")
        table.add_row(escape(name.removeprefix(f"{prefix}.")), *cells)
    table.caption = "error: |(W - Q) X|^2 / |W X|^2, a ratio of squares, on the calibration text"
    if stepped:
        table.caption += (
            "; before: the same without the step; rank: principal directions kept; "
            "null: energy in the null space; alpha: mean over rows"
        )
    if scaled:
        table.caption += "; scales: mean of the factors fitted to the output"
    return table


def _step_cells(layer: LayerRecord) -> list[str]:
    if "alpha_mean" not in layer.notes:
        return ["-"] * 6
    return [
        _percent(layer.notes.get("output_error_before")),
        str(layer.notes.get("kept_rank", "-")),
        _percent(layer.notes.get("nullspace_energy")),
        *_factor_cells(layer, "alpha"),
    ]


def _factor_cells(layer: LayerRecord, which: str) -> list[str]:
    keys = [f"{which}_{kind}" for kind in ("mean", "min", "max")]
    return [f"{layer.notes[key]:.3f}" if key in layer.notes else "-" for key in keys]


def settings_table(settings: Mapping[str, Any]) -> Table:
    """What the result depends on."""
    table = Table(title="settings", show_header=False, box=box.SIMPLE, pad_edge=False)
    for key, value in settings.items():
        table.add_row(escape(key), escape(str(value)))
    return table


def bits_line(record: Mapping[str, Any]) -> str:
    """Bits per weight of a record in JSON, in words, as far as they are known: of the quantized
    linears, of everything else, of all weights."""
    parts = [f"{record['bits_per_weight']:.3f} bits per quantized weight"]
    if "bytes_outside" in record:
        outside, megabytes = record["bits_per_weight_outside"], record["bytes_outside"] / 1e6
        parts.append(f"{outside:.3f} outside of them ({megabytes:.1f} MB)")
    if "bits_per_weight_all" in record:
        share = _percent(record["full_precision_share"])
        parts.append(
            f"{record['bits_per_weight_all']:.3f} over all weights ({share} % of them in full "
            "precision)"
        )
    return ", ".join(parts)


def _percent(share: float | None) -> str:
    return "-" if share is None else rounded(100 * share, 2)


def with_error(value: float, standard_error: float | None) -> str:
    """A measured value and how sure it is; one window alone does not tell."""
    return f"{value:.3f}" if standard_error is None else f"{value:.3f} +- {standard_error:.3f}"


def comparison_lines(comparison: Comparison | None) -> list[str]:
    """What was measured of a quantized model, in a few lines; none where nothing was."""
    if comparison is None:
        return []
    both = {"original": comparison.reference, "quantized": comparison.model}
    fidelity = [] if comparison.fidelity is None else fidelity_lines(comparison.fidelity)
    return [
        *(
            f"Perplexity of the {which} weights: "
            f"{with_error(result.perplexity, result.standard_error)} ({result.label}, "
            f"{result.windows} windows of {result.length} tokens)"
            for which, result in both.items()
        ),
        *fidelity,
    ]


def fidelity_lines(fidelity: Fidelity) -> list[str]:
    """The figures of a fidelity in two lines."""
    f = fidelity
    return [
        f"KL divergence from {f.reference} {figure(f.divergence, f.divergence_error)} nats a "
        f"token (median {rounded(f.median, 4)}, 90 % {rounded(f.percentile_90, 3)}, 99 % "
        f"{rounded(f.percentile_99, 3)}, 99.9 % {rounded(f.percentile_999, 3)}, maximum "
        f"{rounded(f.maximum, 3)})",
        f"same top token {figure(f.same_top, f.same_top_error, percent=True)} %; "
        f"log of the perplexity ratio {figure(f.log_ratio, f.log_ratio_error)}; RMS change of "
        "the token's probability "
        f"{figure(f.probability_change, f.probability_change_error, percent=True)} %",
    ]


def comparison_table(found: Mapping[str, Comparison]) -> Table:
    """Models beside one reference, and the divergence of each less that of the first, paired by
    windows."""
    from q2n.evaluation.fidelity import paired_difference

    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
    table.caption = (
        "KL: divergence from the reference, nats a token; difference: to the first one's"
    )
    table.add_column("model", overflow="fold")
    for title in ("perplexity", "KL", "difference", "same top %"):
        table.add_column(title, justify="right", no_wrap=True)
    first = next(iter(found.values())).fidelity
    beginning = commonprefix(list(found)).rpartition("/")
    shared = len(beginning[0] + beginning[1])
    for name, each in found.items():
        f = each.fidelity
        assert f is not None and first is not None
        table.add_row(
            escape(name[shared:]),
            with_error(each.model.perplexity, each.model.standard_error),
            figure(f.divergence, f.divergence_error),
            "-" if f is first else figure(*paired_difference(f, first)),
            figure(f.same_top, f.same_top_error, percent=True),
        )
    return table


def bucket_table(fidelity: Fidelity) -> Table:
    """The divergence by how sure the reference is."""
    table = Table(title="by the reference's highest probability", box=box.SIMPLE)
    for title in ("probability", "tokens %", "KL mean", "median", "same top %"):
        table.add_column(title, justify="right")
    for bucket in fidelity.buckets:
        table.add_row(
            f"{bucket.low:g} to {bucket.high:g}",
            _percent(bucket.share),
            *("-" if x is None else rounded(x, 4) for x in (bucket.divergence, bucket.median)),
            _percent(bucket.same_top),
        )
    return table


def figure(value: float, error: float | None, percent: bool = False) -> str:
    """A small value and its standard error, where that is known."""
    factor, decimals = (100, 2) if percent else (1, 4)
    return str(Quantity(factor * value, None if error is None else factor * error, decimals))


def block_table(costs: BlockCosts) -> Table:
    """One row per block: what it costs alone, and with all before it."""
    table = Table(title="what each block costs", box=box.SIMPLE, padding=0, pad_edge=False)
    table.add_column("block", no_wrap=True)
    for which in ("alone", "so far"):
        for title in (f"{which} KL", "+-", "top %", "err %", "cos"):
            table.add_column(title, justify="right", no_wrap=True)
    prefix = commonprefix([f"{block.block}." for block in costs.blocks])
    for block in costs.blocks:
        cells = [*_replaced_cells(block.alone), *_replaced_cells(block.up_to_here)]
        table.add_row(escape(block.block.removeprefix(prefix)), *cells)
    table.caption = (
        "alone: only this block is quantized; so far: it and all before it. KL: nats a token and "
        "its standard error; top: same top token; err, cos: relative error (a ratio of squares) "
        "and mean cosine of the block's output"
    )
    return table


def worst_table(costs: BlockCosts, most: int) -> Table:
    """The linears with the largest output errors."""
    layers = costs.worst_layers(most)
    table = Table(title=f"the {len(layers)} layers with the largest errors", box=box.SIMPLE)
    table.add_column("layer", no_wrap=True)
    for title in ("error %", "cosine"):
        table.add_column(title, justify="right")
    for name, change in layers.items():
        table.add_row(escape(name), _percent(change.relative_error), f"{change.cosine:.4f}")
    table.caption = "error: |(W - Q) X|^2 / |W X|^2 on the original's inputs, a ratio of squares"
    return table


def _replaced_cells(replaced: Replaced) -> list[str]:
    error = replaced.divergence_error
    return [
        rounded(replaced.divergence, 4),
        "-" if error is None else rounded(error, 4),
        f"{100 * replaced.same_top:.1f}",
        rounded(100 * replaced.output.relative_error, 1),
        f"{replaced.output.cosine:.3f}",
    ]
