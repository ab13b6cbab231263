"""What a cell that is refused costs, and what it leaves."""

from pathlib import Path

import pytest
from experiments.plans import quick, records

from q2n.errors import NumericalError
from q2n.experiments import measure
from q2n.experiments.run import Request, run_sweep
from q2n.experiments.texts import Original


def request_of(folder: Path, **changes) -> Request:
    """One quantized cell."""
    return Request(plan=quick(folder, axes={"seed": [0]}, **changes), part=(2, 2))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ({"ppl": "nowhere.txt"}, "InputError: text missing: "),
        ({"length": 300}, "text missing: length 300 is more than the 128 positions of the model"),
    ],
)
def test_a_text_that_cannot_be_measured_costs_no_quantization(tmp_path, monkeypatch, text, said):
    monkeypatch.setattr(measure, "quantize", lambda *args, **how: pytest.fail("quantized"))
    quick(tmp_path)
    on = {"ppl": str(tmp_path / "text.txt"), "length": 16, "windows": 1, **text}
    run_sweep(request_of(tmp_path, texts={"missing": on}), tmp_path / "runs")
    (record,) = records(tmp_path / "runs")
    assert said in record.refused


@pytest.mark.parametrize("keep", [False, True])
def test_a_refused_cell_leaves_its_checkpoint_only_if_it_is_to_be_kept(tmp_path, monkeypatch, keep):
    def broken(self, folder):
        raise NumericalError("its logits are not finite")

    monkeypatch.setattr(Original, "compared", broken)
    outcome = run_sweep(request_of(tmp_path), tmp_path / "runs", keep=keep)
    assert outcome.refused == 1
    assert len(list((tmp_path / "runs" / "work").iterdir())) == keep
