"""A record in which any one value is damaged is refused in a line, or shown."""

import json
from argparse import Namespace
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from report.test_card import ORIGINAL

from q2n.cli.inspect import run
from q2n.errors import InputError
from q2n.evaluation.results import Bucket, Comparison, Fidelity
from q2n.report.block_record import LayerRecord
from q2n.report.record import RECORD_FILE, RunRecord

DAMAGE = ("x", None, -1.0, [], {}, [1, "a"], float("nan"), True, {"a": [1]})


def fidelity() -> Fidelity:
    numbers = {
        name: 0.25
        for name, kind in Fidelity.__annotations__.items()
        if kind in ("float", float, "float | None", float | None)
    }
    bucket = Bucket(low=0.0, high=1.0, share=1.0, divergence=0.1, median=0.1, same_top=0.9)
    return Fidelity(
        **numbers, reference="tiny", buckets=(bucket,), by_window=(0.1, 0.2), protocol="q2n",
        sha256="1f",
    )  # fmt: skip


def record() -> dict[str, Any]:
    measured = Comparison(model=ORIGINAL, reference=ORIGINAL, fidelity=fidelity())
    notes = {
        "output_error": 0.1,
        "kept_rank": 5,
        "scales_mean": 1.0,
        "scales_min": 0.9,
        "scales_max": 1.1,
    }
    layer = LayerRecord(shape=(4, 8), bits_per_weight=3.5, notes={**notes, "alpha_mean": 1.0})
    whole = RunRecord(
        settings={"method": "gptq", "model": "tiny", "bits": 3},
        layers={"model.layers.0.q_proj": layer},
        left_in_full_precision=["model.layers.0.k_proj"],
        ignored=[],
        notes=["a note"],
        rest={
            "bits_per_weight_all": 5.0,
            "full_precision_share": 0.25,
            "bits_per_weight_outside": 16.0,
            "bytes_outside": 1000,
            **measured.to_json(),
        },
    )
    return json.loads(json.dumps(whole.to_json()))


def places(value: Any, place: tuple = ()) -> list[tuple]:
    """Of everything in it."""
    found = [place] if place else []
    for key, part in value.items() if isinstance(value, dict) else enumerate(value):
        inner = (*place, key)
        found += places(part, inner) if isinstance(part, dict | list) else [inner]
    return found


def show(folder: Path) -> None:
    run(
        Namespace(
            directory=str(folder), plot=None, html=str(folder / "page.html"), json=False,
            quiet=False, fidelity=False, reference=None, ppl=None, protocol=None, data_dir=None,
            split=None, length=None, windows=None, batch_size=None, device=None, dtype=None,
            trust_remote_code=False,
        )
    )  # fmt: skip


def test_the_whole_one_is_shown(tmp_path, capsys) -> None:
    (tmp_path / RECORD_FILE).write_text(json.dumps(record()))
    show(tmp_path)
    shown = capsys.readouterr().out
    assert "3.500" in shown and "20.5" in shown and "a note" in shown


@pytest.mark.parametrize("place", places(record()), ids=lambda place: ".".join(map(str, place)))
def test_a_damaged_value_ends_in_no_traceback(tmp_path, place) -> None:
    for damage in DAMAGE:
        values = deepcopy(record())
        within = values
        for key in place[:-1]:
            within = within[key]
        within[place[-1]] = damage
        (tmp_path / RECORD_FILE).write_text(json.dumps(values))
        (tmp_path / "page.html").unlink(missing_ok=True)
        try:
            show(tmp_path)
        except InputError as cause:
            assert "\n" not in str(cause) and RECORD_FILE in str(cause)
