"""docs/scaling.md holds what the code says now."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(1800)  # five minutes alone
def test_scaling_page_has_the_present_figures(monkeypatch):
    if not (ROOT / "benchmarks").is_dir():
        pytest.skip("the benchmarks are no part of the source distribution")
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import scaling

    found = scaling.forecasts()
    page = (ROOT / "docs" / "scaling.md").read_text()
    assert scaling.table(found) in page and scaling.notes(found) in page
    del sys.modules["scaling"]
