"""What do perplexity and KL divergence cost beside the bare forward passes of both models?

    python benchmarks/evaluation_cost.py --model smollm2-135m --text wiki.test.raw

Times rounds of both, one after the other, and takes the median of the ratios, so that what else
runs on the machine counts on both sides. The model is compared with itself; nothing is loaded
within the times. Then says how far resident memory rose above that of the process with both models
loaded.
"""

import argparse
import os
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from measuring import heading
from transformers import PreTrainedModel

from q2n.data.texts import Texts
from q2n.data.windows import TokenWindows
from q2n.evaluation.compare import Comparer
from q2n.evaluation.opening import whole
from q2n.formats.load import load_model
from q2n.logging import Reporter
from q2n.models.checkpoint_files import resolve_checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--text", required=True)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    heading("What do perplexity and KL cost beside the bare forward passes of both models?")
    folder = resolve_checkpoint(options.model)
    windows = Texts(folder).evaluation(options.text, length=options.length, limit=options.windows)
    models = [load_model(folder) for _ in range(2)]
    before = _resident()
    with _peak() as seen:
        pairs = [_round(models, windows, options.batch_size) for _ in range(options.rounds)]
    ratios = [ours / bare for bare, ours in pairs]
    print(
        f"{options.model}, {len(windows)} windows of {windows.length} tokens, batch "
        f"{options.batch_size}, {models[0].dtype}"
    )
    print(f"bare passes, seconds: {', '.join(f'{bare:.2f}' for bare, _ in pairs)}")
    print(f"perplexity and KL:    {', '.join(f'{ours:.2f}' for _, ours in pairs)}")
    print(f"ratio: median {statistics.median(ratios):.3f}, {min(ratios):.3f} to {max(ratios):.3f}")
    print(f"memory above both models at its peak: {(max(seen) - before) / 1e9:.2f} GB")


def _round(
    models: list[PreTrainedModel], windows: TokenWindows, batch_size: int
) -> tuple[float, float]:
    """Seconds of the bare passes and of the measurement."""
    reference, model = models
    start = time.perf_counter()
    comparer = Comparer(
        "it", whole(lambda: reference), windows, batch_size=batch_size, reporter=Reporter()
    )
    comparer.compare("itself", whole(lambda: model))
    ours = time.perf_counter() - start
    start = time.perf_counter()
    with torch.inference_mode():
        for each in models:
            for tokens in windows.tokens.split(batch_size):
                each(tokens, use_cache=False)
    return time.perf_counter() - start, ours


@contextmanager
def _peak() -> Iterator[list[int]]:
    """Resident bytes, looked at every 10 ms while the block runs."""
    seen, over = [_resident()], threading.Event()

    def look() -> None:
        while not over.wait(0.01):
            seen.append(_resident())

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield seen
    finally:
        over.set()
        watcher.join()


def _resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
