"""What does a learned rotation win over Hadamard matrices, weights and activations in 4 bits?

For each seed the same model, calibration windows and second step (rounding to the nearest, GPTQ);
only the rotation differs. Prints the KL divergence from the original on windows of several texts,
and the losses of the steps.

    python benchmarks/learned_rotation.py smollm2-135m --data DIR --windows 16 --steps 50
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch
from transformers import PreTrainedModel

from q2n.data.texts import Texts
from q2n.method import Method
from q2n.methods.gptq import GPTQ
from q2n.methods.rtn import RTN
from q2n.models.blocks import BlockwiseModel
from q2n.models.model_source import ModelSource, assemble
from q2n.models.rotated_source import RotatedSource, changed_source
from q2n.models.source import open_source
from q2n.models.turned_source import TurnedSource
from q2n.pipeline.options import LoopOptions
from q2n.pipeline.sequential import SequentialLoop
from q2n.pipeline.store import RunStore
from q2n.refit.predictions import states_of
from q2n.refit.rotation import RotationLearning
from q2n.transforms.model_changes import ModelChanges
from q2n.transforms.runtime import attach_quantizers

LENGTH = 512
METHODS: dict[str, Method] = {
    "rtn": RTN(bits=4, grid="signed", symmetric=True, clip="mse"),
    "gptq": GPTQ(bits=4, grid="signed", symmetric=True, clip="mse", act_order=False),
}
TEXTS = ("wikitext2", "ptb", "c4")


class Measurement:
    """One model and its texts."""

    def __init__(self, model: str, data: str, windows: int, evaluated: int):
        self.source = open_source(model, dtype="float32")
        self.texts = Texts(self.source.folder, data_dir=data)
        self.windows = windows
        self.evaluated = {
            name: self.texts.evaluation(name, length=LENGTH, limit=evaluated).tokens
            for name in TEXTS
        }
        original = assemble(self.source)
        self.head = original.get_output_embeddings()
        self.teacher = {name: _states(original, x) for name, x in self.evaluated.items()}

    def quantized(self, source: ModelSource, method: Method, seed: int) -> PreTrainedModel:
        """The model as it runs."""
        windows = self.texts.calibration("wikitext2", count=self.windows, length=LENGTH, seed=seed)
        with tempfile.TemporaryDirectory() as folder:
            store = RunStore(Path(folder, "run"))
            store.start({}, {}, resume=False)
            loop = SequentialLoop(BlockwiseModel(source), method, store, LoopOptions(seed=seed))
            loop.run(windows)
            model = assemble(source)
            for name, layer in store.layers().items():
                model.get_submodule(name).weight.data.copy_(layer.dequantize())
        assert source.runtime is not None
        attach_quantizers(model, source.runtime)
        return model

    def divergences(self, model: PreTrainedModel) -> dict[str, list[float]]:
        """Of each window, text by text."""
        head, found = model.get_output_embeddings(), {}
        for name, tokens in self.evaluated.items():
            states = _states(model, tokens)
            teacher, own = self.teacher[name], self.head
            found[name] = [_apart(s, head, t, own) for s, t in zip(states, teacher, strict=True)]
        return found


def _states(model: PreTrainedModel, tokens: torch.Tensor) -> list[torch.Tensor]:
    found = states_of(model.base_model, tokens, set(range(len(tokens))))
    return [found[index] for index in range(len(tokens))]


@torch.no_grad()
def _apart(
    states: torch.Tensor, head: torch.nn.Module, teacher: torch.Tensor, own: torch.nn.Module
) -> float:
    """Mean KL over the tokens of a window; each model has its own head."""
    log_s, log_p = head(states).log_softmax(1), own(teacher).log_softmax(1)
    return float(((log_p - log_s) * log_p.exp()).sum(1).mean())


def learned(
    measurement: Measurement,
    seed: int,
    steps: int,
    windows: int,
    rate: float,
    loss: str,
    bits: int,
) -> TurnedSource:
    """The model under a rotation that is learned on windows of the calibration text."""
    changes = ModelChanges(
        rotate="learned",
        activation_bits=4,
        rotate_steps=steps,
        rotate_loss=loss,  # type: ignore[arg-type]
        rotate_weight_bits=bits,  # type: ignore[arg-type]
    )
    source = changed_source(measurement.source, changes, seed)
    assert isinstance(source, RotatedSource) and source.runtime is not None
    text = measurement.texts.calibration(
        "wikitext2", count=steps * windows, length=LENGTH, seed=seed
    )
    learning = RotationLearning(
        steps=steps,
        windows=windows,
        rate=rate,
        loss=changes.rotate_loss,
        weights=changes.learned_weights,
    )
    start = time.perf_counter()
    turn, losses = learning(
        assemble(source),
        source.layout,
        source.runtime,
        text.tokens,
        seed=seed,
        progress=lambda: None,
    )
    print(f"seed {seed}: {time.perf_counter() - start:.0f} s, losses", end=" ")
    print(*(f"{x:.3f}" for x in losses), flush=True)
    return TurnedSource(source, turn)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--data", required=True, help="folder of the texts")
    parser.add_argument("--windows", type=int, default=16, help="of calibration, 512 tokens each")
    parser.add_argument("--evaluated", type=int, default=16, help="windows of each text")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--step-windows", type=int, default=4, help="averaged in a step")
    parser.add_argument("--rate", type=float, default=0.3)
    parser.add_argument("--loss", default="divergence")
    parser.add_argument("--weight-bits", type=int, default=16, help="while the rotation is learned")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    given = parser.parse_args()
    measurement = Measurement(given.model, given.data, given.windows, given.evaluated)
    for seed in given.seeds:
        hadamard = ModelChanges(rotate="hadamard", activation_bits=4)
        sources = {
            "hadamard": changed_source(measurement.source, hadamard, seed),
            "learned": learned(
                measurement,
                seed,
                given.steps,
                given.step_windows,
                given.rate,
                given.loss,
                given.weight_bits,
            ),
        }
        for name in given.methods:
            found = {}
            for rotation, source in sources.items():
                model = measurement.quantized(source, METHODS[name], seed)
                found[rotation] = measurement.divergences(model)
            for text in TEXTS:
                show(seed, name, text, *(torch.tensor(x[text]) for x in found.values()))


def show(seed: int, method: str, text: str, one: torch.Tensor, other: torch.Tensor) -> None:
    """Means over windows, and the paired difference with its standard error."""
    change = other - one
    error = float(change.std()) / len(change) ** 0.5
    print(
        f"seed {seed} {method} {text}: hadamard {float(one.mean()):.4f}, learned "
        f"{float(other.mean()):.4f}, {float(change.mean()):+.4f} +- {error:.4f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
