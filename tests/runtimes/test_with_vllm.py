"""What vLLM makes of checkpoints, on a CPU: every linear runs on its 4-bit kernel.

vLLM computes in bfloat16 there, and so does the reference. The most probable next token is compared
wherever the reference is sure of it (reference.py), greedy text up to where it first is not.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from runtimes.environments import call
from runtimes.reference import NEW, PROMPT, reference, sample

import q2n

pytestmark = pytest.mark.slow
KERNEL = "CPUWNA16LinearKernel"

CASES: dict[str, dict] = {
    "the default": {},
    "asymmetric": {"group_size": 64},
    "symmetric": {"group_size": 64, "symmetric": True},
    "rotated": {"group_size": 64, "rotate": True, "rotate_online": False},
    "gptq_v2": {"group_size": 64, "symmetric": True, "format": "gptq_v2"},
}


@pytest.mark.parametrize("name", CASES)
def test_smollm2(runtime, smollm2: Path, tmp_path: Path, name: str) -> None:
    """With nothing but the folder: no option says how it is quantized. (Scales are searched: a
    model that is less damaged is sure of more.)"""
    runtime("vllm")
    q2n.quantize(
        smollm2, tmp_path / "out", method="rtn", clip="scale_zero", runtime="vllm", **CASES[name]
    )
    tokens = sample(smollm2)
    found = call("vllm", folder=tmp_path / "out", tokens=tokens, prompt=PROMPT, new=NEW)
    expected = reference(tmp_path / "out", tokens, torch.bfloat16)
    assert found["kernels"] == [KERNEL] and found["dtype"] == "torch.bfloat16"
    # The loss of one token differs by some spacings of a logit near 16, 2^-4 each; so many times
    # less the mean of 63 tokens: 0.02 was seen.
    assert abs(found["loss"] - expected.loss) < 0.06
    same = [ours == theirs for ours, theirs in zip(expected.top, found["top"], strict=True)]
    assert sum(expected.sure) > 10 and all(np.array(same)[expected.sure])
    certain = expected.certain()
    assert found["greedy"][:certain] == expected.greedy[:certain]


def test_weights_and_inputs_in_8_bits(runtime, smollm2: Path, tmp_path: Path) -> None:
    """vLLM multiplies whole numbers and rounds less than the reference, which computes in bfloat16
    with inputs that it has rounded twice: the loss is compared with that in float32."""
    runtime("vllm")
    settings = {"bits": 8, "symmetric": True, "activation_bits": 8, "activation_clip_ratio": 1.0}
    q2n.quantize(smollm2, tmp_path / "out", method="rtn", runtime="vllm", **settings)
    tokens = sample(smollm2)
    found = call("vllm", folder=tmp_path / "out", tokens=tokens, prompt=PROMPT, new=NEW)
    expected = reference(tmp_path / "out", tokens, torch.bfloat16)
    assert found["kernels"] == ["CPUInt8ScaledMMLinearKernel"]
    same = [ours == theirs for ours, theirs in zip(expected.top, found["top"], strict=True)]
    assert sum(expected.sure) > 10 and all(np.array(same)[expected.sure])
    exact = reference(tmp_path / "out", tokens, torch.float32)
    assert abs(found["loss"] - exact.loss) < 0.06


def test_a_float32_checkpoint_runs_in_bfloat16(runtime, smollm2: Path, tmp_path: Path) -> None:
    """Written without --runtime, in the model's own dtype."""
    runtime("vllm")
    q2n.quantize(smollm2, tmp_path / "out", method="rtn")
    found = call("vllm", folder=tmp_path / "out", tokens=sample(smollm2), prompt=PROMPT, new=NEW)
    assert found["kernels"] == [KERNEL] and found["dtype"] == "torch.bfloat16"
