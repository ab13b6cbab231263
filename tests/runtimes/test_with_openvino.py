"""What OpenVINO's PyTorch frontend makes of compressed-tensors checkpoints, on a CPU."""

from pathlib import Path

import pytest
from runtimes.environments import call
from runtimes.reference import NEW, PROMPT, reference, sample

import q2n

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_smollm2(runtime, smollm2: Path, tmp_path: Path, dtype: str) -> None:
    """The codes become 4-bit constants; the loss is that of our own reader."""
    runtime("openvino")
    q2n.quantize(smollm2, tmp_path / "out", method="rtn", runtime="openvino", dtype=dtype)
    tokens = sample(smollm2)
    found = call("openvino", folder=tmp_path / "out", tokens=tokens, prompt=PROMPT, new=NEW)
    expected = reference(tmp_path / "out", tokens)
    assert found["packed"] == 210
    assert abs(found["loss"] - expected.loss) < 5e-5  # half of the perplexity's fourth digit
    assert found["greedy"] == expected.greedy
