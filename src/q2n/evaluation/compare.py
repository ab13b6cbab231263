"""The same measurement of several models, one in memory at a time."""

from collections.abc import Callable, Mapping

from transformers import PreTrainedModel

from q2n.data.windows import TokenWindows
from q2n.evaluation.perplexity import PerplexityResult, perplexity
from q2n.logging import Reporter


def compare_perplexity(
    models: Mapping[str, Callable[[], PreTrainedModel]],
    windows: TokenWindows,
    *,
    batch_size: int,
    reporter: Reporter,
) -> dict[str, PerplexityResult]:
    """Perplexity of each model on the same windows.

    Args:
        models: by what they are called ("original", "quantized"); each loads when its turn comes.

    Raises:
        InputError, NumericalError: as `perplexity`.
    """
    results = {}
    for which, load in models.items():
        with reporter.bar(f"perplexity of the {which} weights", len(windows)) as bar:
            results[which] = perplexity(
                load(), windows, batch_size=batch_size, progress=bar.advance
            )
    return results
