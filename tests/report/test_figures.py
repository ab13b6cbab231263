"""Figures: what they show, that they come out the same, and that their labels can be read."""

import math
import re
import xml.etree.ElementTree as ElementTree
from itertools import pairwise

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from sweep_records import KINDS, layers, record, spectrum, sweep, text_result

from q2n.report.experiment import KindOfLayer
from q2n.report.figures.frame import frame
from q2n.report.figures.labels import End, spread
from q2n.report.figures.layers import layer_pictures, panels_of
from q2n.report.figures.point_labels import label_points
from q2n.report.figures.spectra import spectrum_picture, spectrum_pictures, tails_picture
from q2n.report.figures.style import told_apart
from q2n.report.sweeps.bar_figures import ACCURACY, bar_pictures, groups_of, on_text
from q2n.report.sweeps.gallery import pictures
from q2n.report.sweeps.quality_figures import COSTS, axis_of_cost, quality_pictures
from q2n.report.sweeps.rows import rows_of

ROWS = rows_of(sweep())
TEXT = "WikiText-2"


def words(picture) -> list[str]:
    """What is written in a figure, from its SVG: text is text."""
    root = ElementTree.fromstring(picture.svg)
    return ["".join(x.itertext()) for x in root.iter("{http://www.w3.org/2000/svg}text")]


def drawn(axes) -> list:
    """Lines through several points, without those that lead to a label."""
    lines = [line for line in axes.lines if len(line.get_xdata()) > 1]
    return [line for line in lines if line.get_transform() != axes.transAxes]


def test_quality_names_every_line_and_its_axes() -> None:
    (smol, gemma) = quality_pictures("table6", ROWS, COSTS[0], "C4")
    found = words(smol)
    assert {"GPTQ, alone", "GPTQ, Q2N", "QuIP, Q2N", "PB-LLM, alone"} <= set(found)
    assert "SmolLM2-135M on C4" in found and "bits per quantized weight" in found
    assert "Gemma-3-270M on C4" in words(gemma)


def test_quality_is_logarithmic_and_a_line_goes_along_the_bits() -> None:
    (smol, _) = quality_pictures("table6", ROWS, COSTS[0], "C4")
    (axes,) = smol.figure.axes
    assert axes.get_yscale() == "log"
    xs = [list(line.get_xdata()) for line in drawn(axes)]
    assert sorted(xs) == [[2.02, 3.02]] * 2 + [[2.28, 3.03]] * 2


def test_rows_of_one_width_give_no_line() -> None:
    same = [row for row in ROWS if row.labels.get("bits") != "3"]
    assert (
        list(
            quality_pictures(
                "x", [x for x in same if x.labels.get("method") != "QuIP"], COSTS[0], "C4"
            )
        )
        == []
    )


def test_many_lines_are_named_as_far_as_they_can_be_told_apart() -> None:
    cells = [
        record({"method": f"m{n}", "bits": b}, 1.0 + n / 10, bits_per_weight=float(b))
        for n in range(14)
        for b in (2, 3)
    ]
    (picture,) = quality_pictures("x", rows_of(cells), COSTS[0], "WikiText-2")
    assert "4 more in grey" in words(picture) and "m9" in words(picture)
    assert "m10" not in words(picture)


def test_bars_stand_in_groups_around_the_row_they_are_compared_with() -> None:
    groups = groups_of(ROWS)
    assert len(groups) == 10 and all(len(group.others) == 1 for group in groups)
    found = words(next(bar_pictures("table6", ROWS, on_text("WikiText-2"))))
    assert {"GPTQ, 3", "QuIP, 2, groups of 64", "alone", "Q2N"} <= set(found)
    lead = groups[1].others[0].on("WikiText-2").less(groups[1].reference.on("WikiText-2"))
    assert any(f"({lead.value:+.3f} ± {lead.total_error:.3f})" in word for word in found)


def gains(divergence: float, other: float):
    """The bars of two rows, one of which is compared with the other."""
    facts = {"compare": {"step": "alone"}, "places": {"step": 1}}
    cells = [record({"step": "alone"}, divergence), record({"step": "Q2N"}, other, **facts)]
    [picture] = bar_pictures("p", rows_of(cells), on_text(TEXT))
    return picture, words(picture)


def test_small_divergences_and_gains_have_digits() -> None:
    _, found = gains(0.0002, 0.0001)
    assert "0.000103 (-0.000103 ± 0.000004)" in found


def test_the_numbers_beside_long_bars_stand_in_the_figure() -> None:
    picture, _ = gains(2.0, 144.5)
    canvas = FigureCanvasAgg(picture.figure)
    canvas.draw()
    right = picture.figure.bbox.width
    for text in picture.figure.axes[0].texts:
        assert text.get_window_extent(canvas.get_renderer()).x1 <= right, text.get_text()


def test_accuracy_has_bars_too() -> None:
    assert "mean accuracy, %" in words(next(bar_pictures("table6", ROWS, ACCURACY)))
    without = rows_of(
        [record({"step": "alone"}), record({"step": "Q2N"}, compare={"step": "alone"})]
    )
    assert list(bar_pictures("x", without, ACCURACY)) == []
    assert len(list(bar_pictures("x", without, on_text("WikiText-2")))) == 1


def test_a_spectrum_shows_where_each_rule_cuts() -> None:
    picture = spectrum_picture("x", "SmolLM2", spectrum(14, "q_proj"))
    found = words(picture)
    assert {"ratio rule keeps 82", "matrix_rank keeps 575", "Adam-NSCL keeps 314"} <= set(found)
    (axes,) = picture.figure.axes
    assert sorted(line.get_xdata()[0] for line in axes.lines[1:]) == [82, 314, 575]


def test_no_line_goes_through_the_name_of_a_cut() -> None:
    picture = spectrum_picture("figure1", "SmolLM2", spectrum(14, "down_proj"))
    names = [x for x in picture.figure.axes[0].texts if " keeps " in x.get_text()]
    assert len(names) == 3
    assert all(x.get_bbox_patch() and x.get_zorder() > 2 for x in names), "lines are at 2"


def test_tails_leave_out_the_largest_five_and_mark_the_split() -> None:
    shown = [spectrum(block, "q_proj") for block in range(0, 30, 3)]
    picture = tails_picture("x", "SmolLM2", shown)
    (axes,) = picture.figure.axes
    lines = drawn(axes)
    assert len(lines) == 5 and all(line.get_xdata()[0] == 6 for line in lines)
    names = [word for word in words(picture) if word.startswith("block ")]
    assert names[0] == "block 0" and names[-1] == "block 27" and len(names) == 5
    dots = [line.get_xdata()[0] for line in axes.lines if len(line.get_xdata()) == 1]
    assert len(dots) == 5 and all(a < b for a, b in pairwise(dots))


def test_layers_have_a_line_a_kind_and_gaps_where_there_is_no_value() -> None:
    kinds = layers(0.7, stepped=True)
    assert [x.name for x in panels_of(kinds)] == ["error", "alpha"]
    assert [x.name for x in panels_of(layers(0.7, stepped=False))] == ["error"]
    first = kinds["q_proj"]
    gaps = {
        **kinds,
        "q_proj": type(first)(blocks=first.blocks, output_error=[None, *first.output_error[1:]]),
    }
    error, alpha = layer_pictures("x", "GPTQ", gaps)
    assert set(KINDS) <= set(words(error)) and "q_proj" not in words(alpha)
    assert math.isnan(error.figure.axes[0].lines[0].get_ydata()[0])


def test_a_layer_without_any_error_leaves_a_gap_on_a_logarithmic_height() -> None:
    kind = KindOfLayer(blocks=[0, 1, 2], output_error=[0.1, 0.2, 0.0])
    [picture] = layer_pictures("m", "m", {"q_proj": kind})
    [line] = drawn(picture.figure.axes[0])
    assert line.get_ydata()[:2].tolist() == [0.1, 0.2] and math.isnan(line.get_ydata()[2])
    [leader] = [x for x in picture.figure.axes[0].lines if x is not line]
    assert 0 < leader.get_ydata()[0] < 1, "it leads to the last error, within the axes"
    assert "0 is not shown" in words(picture)


def test_layers_without_any_error_at_all_are_a_figure_that_says_so() -> None:
    kind = KindOfLayer(blocks=[0, 1], output_error=[0.0, 0.0])
    [picture] = layer_pictures("m", "m", {"q_proj": kind})
    assert not picture.figure.axes[0].lines and "0 is not shown" in words(picture)


def test_one_block_is_a_point_and_blocks_are_whole_numbers() -> None:
    for blocks in ([0], [0, 1, 2]):
        kind = KindOfLayer(blocks=blocks, output_error=[0.1 + b for b in blocks])
        [picture] = layer_pictures("m", "m", {"q_proj": kind})
        axes = picture.figure.axes[0]
        assert (axes.lines[0].get_marker() == "o") is (blocks == [0])
        picture.figure.draw_without_rendering()
        low, high = axes.get_xlim()
        assert [x for x in axes.get_xticks() if low <= x <= high] == blocks


@pytest.mark.parametrize("wanted", [[0.5] * 5, [0.0, 0.01, 0.99, 1.0], [0.9, 0.1, 0.5], [0.2]])
def test_labels_keep_their_distance_and_their_order(wanted) -> None:
    places = spread(wanted, 0.1, 0.0, 1.0)
    assert all(b - a >= 0.1 - 1e-9 for a, b in pairwise(sorted(places)))
    assert min(places) >= -1e-9 and max(places) <= 1 + 1e-9
    order = sorted(range(len(wanted)), key=wanted.__getitem__)
    assert order == sorted(range(len(wanted)), key=places.__getitem__)


def test_labels_in_a_crowd_lie_around_their_lines() -> None:
    assert spread([0.5] * 3, 0.1, 0.0, 1.0) == pytest.approx([0.4, 0.5, 0.6])


def test_labels_that_have_room_stay_at_their_lines() -> None:
    assert spread([0.3, 0.7, 0.5], 0.1, 0.0, 1.0) == [0.3, 0.7, 0.5]


def test_every_figure_has_a_name_of_its_own_and_comes_out_the_same() -> None:
    once, again = (list(pictures("table6", ROWS)) for _ in range(2))
    names = [picture.name for _, picture in once]
    assert len(set(names)) == len(names) > 30
    assert [p.svg for _, p in once[:4]] == [p.svg for _, p in again[:4]]
    assert [p.png for _, p in once[:2]] == [p.png for _, p in again[:2]]


def test_a_file_stands_alone_on_white() -> None:
    (picture, *_) = quality_pictures("table6", ROWS, COSTS[0], "C4")
    svg = picture.svg.decode()
    assert "var(" not in svg and "#fffffe" in svg and re.search("font-family: system-ui", svg)
    assert picture.png.startswith(b"\x89PNG")


def test_names_of_points_cover_nothing_and_stay_in_the_frame() -> None:
    figure, axes = frame("title", "subtitle")
    ends = [End(1.0, 1.0 + n / 50, f"a name {n}", "#000000") for n in range(9)]
    ends += [End(1.99, 0.5, "right", "#000000"), End(1.0, 3.0, "top", "#000000")]
    axes.plot([x.x for x in ends], [x.y for x in ends], "o")
    axes.set(xlim=(1, 2), ylim=(0, 3))
    before = len(axes.texts)
    label_points(axes, ends)
    figure.canvas.draw()
    names = axes.texts[before:]
    for name in names:
        name.arrowprops = name.arrow_patch = None  # the leader is no part of it
    boxes = [name.get_window_extent() for name in names]
    assert {"right", "top", "a name 0"} <= {text.get_text() for text in axes.texts}
    assert 5 < len(boxes) < len(ends), "the crowd is not named in full"
    assert not any(a.overlaps(b) for n, a in enumerate(boxes) for b in boxes[:n])
    assert all(axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1 for box in boxes)


@pytest.mark.parametrize("cost", [COSTS[1], COSTS[2]])
def test_long_names_stay_different_names(cost) -> None:
    names = [f"GPTQ in groups of 64, {x} scales, refit of the rows" for x in ("own", "no", "few")]
    rows = [
        record(
            {"step": name},
            1 + n,
            places={"step": n},
            bytes=10**8 * (1 + n),
            seconds={"quantization": 9.0 + n},
        )
        for n, name in enumerate(names)
    ]
    (picture,) = quality_pictures("p", rows_of(rows), cost, TEXT)
    found = [word for word in words(picture) if "…" in word]
    assert len(found) == len(set(found)) >= 2, "a point without room goes without"


def test_names_are_shortened_to_what_tells_them_apart() -> None:
    assert told_apart(["a long name of 1 step", "short"], 10) == {
        "a long name of 1 step": "a long…tep",
        "short": "short",
    }
    found = told_apart([f"a long name of {n} steps" for n in (1, 2)], 10)
    assert list(found.values()) == ["… of 1…eps", "… of 2…eps"]


def test_what_is_said_in_the_corner_covers_nothing() -> None:
    rows = [
        record({"step": str(n)}, 1 + n / 10, places={"step": n}, seconds={"quantization": n + 9.0})
        for n in range(15)
    ]
    (picture,) = quality_pictures("p", rows_of(rows), COSTS[2], TEXT)
    axes = picture.figure.axes[0]
    canvas = FigureCanvasAgg(picture.figure)
    canvas.draw()
    [corner] = [x for x in axes.texts if x.get_text() == "5 more in grey"]
    box = corner.get_window_extent()
    for other in (axes, axes.xaxis.label, *axes.get_xticklabels()):
        assert not box.overlaps(other.get_window_extent()), other
    assert picture.figure.bbox.x1 >= box.x1 and box.y0 >= 0


def test_without_a_divergence_the_height_is_the_perplexity() -> None:
    cells = [
        record(
            {"method": method, "bits": b},
            bits_per_weight=float(b),
            texts=[text_result("A", None, perplexity=p / b)],
        )
        for method, p in (("RTN", 300.0), ("GPTQ", 120.0))
        for b in (2, 3)
    ]
    (picture,) = quality_pictures("x", rows_of([record({}, None), *cells]), COSTS[0], "A")
    assert {"perplexity", "RTN", "GPTQ"} <= set(words(picture))
    heights = [list(line.get_ydata()) for line in drawn(picture.figure.axes[0])]
    assert heights == [[60.0, 40.0], [150.0, 100.0]]


def test_a_line_goes_along_the_axis_that_says_the_cost() -> None:
    """Whatever it is called: here the type of a file, which two programs write."""
    bits, size, time = COSTS
    cells = [
        record({"type": kind, "by": by}, kl, bytes=size_of, seconds={"quantization": seconds})
        for kind, size_of in (("q4_0", 4_000_000), ("q4_k", 4_010_000), ("q6_k", 6_000_000))
        for by, kl, seconds in (("llama.cpp", 0.2, 1.0), ("q2n", 0.1, 60.0))
    ]
    rows = rows_of(cells)
    assert axis_of_cost(rows, size, ["type", "by"]) == "type"
    assert axis_of_cost(rows, time, ["type", "by"]) == "by"
    assert axis_of_cost(rows, bits, ["type", "by"]) is None, "it is the same in all"
    assert axis_of_cost(rows[::2], size, ["type"]) is None, "nothing else tells rows apart"
    (picture,) = quality_pictures("x", rows, size, "WikiText-2")
    assert {"llama.cpp", "q2n"} <= set(words(picture)) and len(drawn(picture.figure.axes[0])) == 2


def test_a_name_has_one_colour_whatever_the_model() -> None:
    """Though another one is best on each."""
    cells = [
        record({"model": m, "method": x, "bits": b}, kl / b, bits_per_weight=float(b))
        for m, kls in (("A", (0.5, 0.9)), ("B", (0.9, 0.5)))
        for x, kl in zip(("RTN", "GPTQ"), kls, strict=True)
        for b in (2, 3)
    ]
    a, b = (drawn(p.figure.axes[0]) for p in quality_pictures("x", rows_of(cells), COSTS[0], TEXT))
    assert [x.get_color() for x in a] == [x.get_color() for x in b][::-1]


def test_inputs_of_too_few_columns_have_no_spectrum() -> None:
    narrow = spectrum(0, "q_proj", width=4)
    assert list(spectrum_pictures("x", "tiny", [narrow])) == []
    assert len(list(spectrum_pictures("x", "tiny", [narrow, spectrum(1, "q_proj")]))) == 2
