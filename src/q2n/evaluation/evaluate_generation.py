"""The generation check of a model by name."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from q2n.evaluation.generation import PROMPTS, GenerationResult, generation
from q2n.evaluation.loading import MeasuredModel
from q2n.logging import Reporter


def evaluate_generation(
    model: str | Path | PreTrainedModel,
    *,
    device: str = "auto",
    dtype: str | None = "auto",
    trust_remote_code: bool = False,
    tokenizer: Any = None,
    reporter: Reporter | None = None,
) -> GenerationResult:
    """Greedy text of a full-precision or quantized model after 20 prompts, and how much of it
    repeats.

    Args:
        model: as for `quantize`; checkpoints that q2n wrote are recognised.
        device, dtype: for a model that is loaded, dtype "auto" or None in the checkpoint's; an
            object is taken as it is.
        tokenizer: needed for a model object.

    Raises:
        InputError: no such model, or it does not run.
        NumericalError: its logits are NaN.
    """
    measured = MeasuredModel(
        model, tokenizer, device=device, dtype=dtype, trust_remote_code=trust_remote_code
    )
    loaded = measured.load()
    with (reporter or Reporter()).bar("generation", len(PROMPTS)) as bar:
        return generation(*loaded, progress=bar.advance)
