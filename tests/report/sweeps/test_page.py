"""The page as text, and as a browser shows it."""

import json
import re
import shutil
import subprocess
import time
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import pytest
from sweep_records import record, refused, sweep

from q2n.report.sweeps.page import render_page
from q2n.report.sweeps.report import Report
from q2n.report.sweeps.runs import Runs, Skipped

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
in_chromium = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
SEEN = """<script>
const right = x => x.getBoundingClientRect().right, svgs = [...document.querySelectorAll("svg")];
const outside = [...document.querySelectorAll("body *")].filter(x => !x.closest(".scroll *"));
parent.document.documentElement.dataset.seen = JSON.stringify({
  width: innerWidth,
  scroll: document.documentElement.scrollWidth,
  wide: outside.filter(x => right(x) > innerWidth + 0.5).map(x => x.tagName + " " + x.className),
  figures: svgs.length,
  hidden: svgs.filter(x => x.getBoundingClientRect().height < 50).length,
  rows: document.querySelectorAll("tbody tr").length,
  background: getComputedStyle(document.body).backgroundColor,
  ink: getComputedStyle(document.querySelector("svg text")).fill});
</script></body>"""
LONG = {"model": "an-organization/" + "a-model-of-a-very-long-name-" * 4, "method": "m" * 60}


def page(records, skipped=()) -> str:
    return render_page(Report(Runs(records, list(skipped))))


@pytest.fixture(scope="module")
def whole() -> str:
    """Everything that a page can show, long names and a command that is wider than a phone."""
    long = [
        record({**LONG, "step": step}, kl, plan="long", bits_per_weight=bits, command="q2n " * 99)
        for step, kl, bits in (("alone", 0.5, 3.0), ("x" * 70, 0.4, 4.0))
    ]
    return page([*sweep(), *long], [Skipped("/" + "folder/" * 40 + "a.json", "it is truncated")])


class Outline(HTMLParser):
    """Tags with their attributes, and what stands in them."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes) -> None:
        self.tags.append((tag, dict(attributes)))

    def all(self, *names: str) -> list[dict]:
        return [attributes for tag, attributes in self.tags if tag in names]


def test_the_page_needs_nothing_outside_itself(whole) -> None:
    outline = Outline(whole)
    assert not outline.all("script", "img", "iframe", "object", "video")
    assert [link["href"] for link in outline.all("link")] == ["data:,"]
    assert all(link["href"].startswith("#") for link in outline.all("a"))
    assert "url(http" not in whole and "@import" not in whole and "@font-face" not in whole


def test_headings_stand_in_order(whole) -> None:
    levels = [int(tag[1]) for tag, _ in Outline(whole).tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(levels, levels[1:], strict=False))


def test_links_and_names_fit_and_no_name_is_used_twice(whole) -> None:
    outline = Outline(whole)
    names = [attributes["id"] for _, attributes in outline.tags if "id" in attributes]
    assert len(names) == len(set(names))
    links = [x["href"] for x in outline.all("a")]
    references = re.findall(r'(?:xlink:href="|url\()(#[\w-]+)', whole)
    assert references and {x.removeprefix("#") for x in [*links, *references]} <= set(names)
    assert {x["aria-labelledby"] for x in outline.all("div") if "aria-labelledby" in x} <= set(
        names
    )


def test_headers_have_a_scope_and_figures_a_title(whole) -> None:
    outline = Outline(whole)
    assert {x.get("scope") for x in outline.all("th")} == {"col", "row", "colgroup"}
    figures = re.findall(r"<svg[^>]*>", whole)
    assert len(figures) > 30 and all('role="img"' in figure for figure in figures)
    assert len(re.findall(r"<svg[^>]*><title>[^<]+</title>", whole)) == len(figures)


def test_every_colour_of_a_figure_is_a_variable_that_the_page_sets(whole) -> None:
    figures = "".join(re.findall(r"<svg.*?</svg>", whole, flags=re.S))
    assert not re.findall(r"(?:fill|stroke): #\w+", figures)
    used = set(re.findall(r"var\((--[\w-]+)\)", whole))
    assert used <= set(re.findall(r"(--[\w-]+):", whole)) and "--series-1" in used


def test_the_summary_comes_first_and_says_how_sure_it_is(whole) -> None:
    summary = whole[whole.index('id="summary"') : whole.index('id="plan-1"')]
    assert "What wins" in summary and "beyond its error" in summary and "±" in summary
    assert "GPTQ · QuIP" in summary


def test_what_was_refused_skipped_and_run_is_said() -> None:
    why = "InputError: --bits 3 <cannot> be had"
    text = page(
        [record({"model": "m", "step": "a"}), refused({"model": "m", "step": "b"}, why)],
        [Skipped("runs/cells/1.json", "it is not JSON")],
    )
    assert "refused: InputError: --bits 3 &lt;cannot&gt; be had" in text
    assert "runs/cells/1.json" in text and "q2n sweep steps.yaml" in text
    assert "AMD EPYC" in text and "transformers" in text


@pytest.mark.parametrize("seed", [{}, {"seed": 0}])
def test_why_is_said_where_every_cell_was_refused(seed) -> None:
    cells = [refused({"model": "m", "step": x, **seed}, f"no {x}") for x in "ab"]
    text = page(cells)
    assert "refused: no a</td>" in text and "refused: no b</td>" in text


def test_a_seed_that_was_refused_does_not_hide_the_results_of_the_others() -> None:
    done = [record({"model": "m", "step": x, "seed": 0}, bits_per_weight=3.25) for x in "ab"]
    text = page([*done, refused({"model": "m", "step": "a", "seed": 1}, "out of memory")])
    results = text[text.index(">Results<") :]
    assert results.count(">3.25</td>") == 2
    assert "of the row above, in part: refused: out of memory</td>" in results


def test_one_original_alone_is_a_page() -> None:
    assert "No quantized model was measured" in page([record({"model": "m"}, None)])


def test_a_label_is_text_whatever_it_holds() -> None:
    bad = "<b>$x_1$</b> & \"'"
    text = page(
        [record({"model": bad, "step": x}, bits_per_weight=b) for x, b in (("a", 2.0), ("b", 3.0))]
    )
    assert "<b>" not in text
    assert re.search(r"<text[^>]*>&lt;b&gt;\$x_1\$&lt;/b&gt; &amp; ", text), "in a figure, as it is"


def test_the_same_records_give_the_same_bytes() -> None:
    cells = [
        record({"model": "m", "step": step, "bits": bits}, 1 / bits, bits_per_weight=float(bits))
        for step in ("alone", "Q2N")
        for bits in (2, 3)
    ]
    assert page(cells) == page(cells) and "<svg" in page(cells)


@pytest.mark.slow
def test_two_hundred_records_take_less_than_ten_seconds() -> None:
    records = [x for n in range(3) for x in sweep(range(3), plan=f"plan {n}")]
    records += sweep((7,), plan="plan 0")
    assert len(records) > 200
    before = time.perf_counter()
    text = page(records)
    seconds = time.perf_counter() - before
    print(f"{len(records)} records: {seconds:.1f} s, {len(text) / 1e6:.1f} MB")
    assert seconds < 60, "generous: a busy machine with checks of every type"


def seen(text: str, folder: Path, width: int, *flags: str) -> tuple[dict, list[str]]:
    """What a browser makes of a page: figures of its layout, and messages of its console. The page
    stands in a frame, for a window of Chromium is 500 wide at least."""
    file = folder / "frame.html"
    inner = escape(text.replace("</body>", SEEN))
    frame = f'<iframe style="border:0;width:{width}px;height:900px" srcdoc="{inner}"></iframe>'
    file.write_text(f"<!doctype html><html><body>{frame}</body></html>", encoding="utf-8")
    done = subprocess.run(
        [
            str(CHROMIUM),
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--enable-logging=stderr",
            f"--user-data-dir={folder / 'profile'}",
            "--hide-scrollbars",
            "--window-size=1500,1000",
            "--dump-dom",
            *flags,
            file.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=300,
    )
    (found,) = [x["data-seen"] for x in Outline(done.stdout).all("html")]
    messages = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return json.loads(found), messages


@pytest.mark.slow
@in_chromium
@pytest.mark.parametrize("width", [380, 1400])
def test_nothing_overflows_and_the_console_is_silent(whole, tmp_path, width) -> None:
    found, messages = seen(whole, tmp_path, width)
    assert messages == []
    assert found["width"] == width and found["scroll"] <= width and found["wide"] == []
    assert found["figures"] > 30 and found["hidden"] == 0 and found["rows"] > 60


@pytest.mark.slow
@in_chromium
def test_planted_faults_are_seen(whole, tmp_path) -> None:
    planted = whole.replace(
        "</body>", '<p style="width:2000px">x</p><script>console.log(1)</script></body>'
    )
    found, messages = seen(planted, tmp_path, 380)
    assert len(messages) == 1 and found["scroll"] > 380 and len(found["wide"]) == 1


@pytest.mark.slow
@in_chromium
def test_dark_is_dark_and_figures_follow(whole, tmp_path) -> None:
    light, _ = seen(whole, tmp_path, 1400)
    dark, _ = seen(whole, tmp_path, 1400, "--blink-settings=preferredColorScheme=0")
    assert light["background"] == "rgb(255, 255, 255)" and light["ink"] == "rgb(91, 101, 112)"
    assert dark["background"] == "rgb(20, 23, 27)" and dark["ink"] == "rgb(163, 173, 184)"
