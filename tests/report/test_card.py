from dataclasses import replace
from pathlib import Path

import yaml

from q2n.evaluation.results import Comparison, Fidelity, PerplexityResult
from q2n.formats import FORMATS
from q2n.report.card import About, CardFacts, render_card
from q2n.report.tables import fidelity_lines

FACTS = CardFacts(
    about=About(
        outside="Embeddings, norms, biases and the output head are not quantized.",
        language="python",
        method="gptq with the null-space step",
        format="compressed-tensors",
        tags=("compressed-tensors", "q2n"),
        runtime=False,
    ),
    base_model="someone/it's-a-model",
    title="A model in 3 bits",
    loading_example="import somewhere\n",
    settings={"bits": 3, "group size": "one per row"},
    bits_per_weight=3.0625,
    bits_per_weight_all=7.125,
    full_precision_share=0.2113,
    bits_per_weight_outside=8.375,
    bytes_outside=29_600_000,
    bytes_before=269_000_000,
    bytes_after=96_500_000,
    version="0.1.0",
)

ORIGINAL = PerplexityResult(
    perplexity=20.5,
    loss=3.02,
    standard_error=0.25,
    windows=64,
    tokens=64 * 1023,
    length=1024,
    stride=None,
    protocol="gptq-new",
    label="wikitext2",
    sha256="",
    seconds=1.0,
)


def test_front_matter_is_yaml() -> None:
    matter = yaml.safe_load(render_card(FACTS).split("---\n")[1])
    assert matter["base_model"] == FACTS.base_model
    assert matter["tags"] == ["quantized", "q2n", "compressed-tensors"]
    assert matter["library_name"] == "transformers"
    assert matter["base_model_relation"] == "quantized"


def test_a_model_from_a_folder_is_not_named_by_its_path(tmp_path) -> None:
    """Which says nothing elsewhere, and perhaps too much."""
    folder = tmp_path / "somebody" / "model"
    folder.mkdir(parents=True)
    card = render_card(replace(FACTS, base_model=str(folder)))
    assert "somebody" not in card and "model with the weights" in card
    matter = yaml.safe_load(card.split("---\n")[1])
    assert "base_model" not in matter and matter["library_name"] == "transformers"


def test_card_separates_measured_from_unmeasured() -> None:
    bare = render_card(FACTS)
    assert "Perplexity was not measured" in bare and "## Method" not in bare
    assert "over all weights, 21.1 % of them not quantized | 7.125 |" in bare
    assert "3.062" in bare and "269.0 MB" in bare and "96.5 MB" in bare and "| bits | 3 |" in bare
    quantized = replace(ORIGINAL, perplexity=31.25, standard_error=None)
    measured = render_card(
        replace(FACTS, comparison=Comparison(reference=ORIGINAL, model=quantized, fidelity=None))
    )
    assert "KL divergence" not in measured
    assert "by the protocol gptq-new" in measured
    assert "| original | wikitext2 | 20.500 | 0.25 | 64 x 1024 |" in measured
    assert "| quantized | wikitext2 | 31.250 | not measured | 64 x 1024 |" in measured
    assert "Perplexity was not measured" not in measured


def test_the_card_shows_the_lines_that_load() -> None:
    for format in FORMATS.values():
        lines = format.container.loading_example(Path("out"))
        assert lines.strip() in render_card(replace(FACTS, loading_example=lines))


def test_the_card_counts_linears_in_full_precision() -> None:
    assert "full precision" not in render_card(FACTS)
    assert "7 linears stay in full precision" in render_card(replace(FACTS, ignored=7))


def test_notes_stand_in_the_card() -> None:
    card = render_card(replace(FACTS, notes=["mtp.proj is copied unchanged"]))
    assert "\n\n**Note:** mtp.proj is copied unchanged.\n\n| | |" in card


def test_small_divergences_have_digits_in_the_card() -> None:
    fidelity = Fidelity(
        reference="the original",
        divergence=0.0000312,
        divergence_error=0.0000021,
        median=0.0000204,
        percentile_90=0.0001,
        percentile_99=0.00031,
        percentile_999=0.001,
        maximum=0.002,
        same_top=0.999,
        same_top_error=0.0001,
        probability_change=0.001,
        probability_change_error=0.0001,
        log_ratio=-0.0000112,
        log_ratio_error=0.00001,
        buckets=(),
        by_window=(),
        protocol="q2n",
        sha256="",
    )
    measured = Comparison(reference=ORIGINAL, model=ORIGINAL, fidelity=fidelity)
    card = render_card(replace(FACTS, comparison=measured))
    assert "nats a token, mean | 0.00003 | 2.1e-06 |" in card
    assert "median | 0.00002 |" in card and "original's | -0.00001 | 1e-05 |" in card
    [first, second] = fidelity_lines(fidelity)
    assert "0.000031 +- 0.000002 nats a token (median 0.00002, 90 % 0.0001," in first
    assert "99.90 +- 0.01 %" in second and "ratio -0.00001 +- 0.00001" in second


def test_what_the_card_lists_is_shown_as_it_is() -> None:
    settings = {"ignore": ["*attn*", "a|b"], "eos": "<eos>"}
    card = render_card(replace(FACTS, settings=settings, title="a *b* c", notes=["left: *x*"]))
    assert r"| ignore | ['\*attn\*', 'a\|b'] |" in card and r"| eos | \<eos> |" in card
    assert r"# a \*b\* c" in card and r"**Note:** left: \*x\*." in card
