"""What does a learned rotation win over Hadamard matrices, weights and activations in 4 bits?

For each seed the same model, calibration windows and second step (rounding to the nearest, GPTQ);
only the rotation differs. Prints the KL divergence from the original on windows of several texts,
and the losses of the steps.

    python benchmarks/learned_rotation.py smollm2-135m --data DIR --windows 16 --steps 50
"""

import tempfile
from pathlib import Path

import torch
from transformers import PreTrainedModel

from q2n.data.texts import Texts
from q2n.method import Method
from q2n.methods.gptq import GPTQ
from q2n.methods.rtn import RTN
from q2n.models.blocks import BlockwiseModel
from q2n.models.model_source import ModelSource, assemble
from q2n.models.source import open_source
from q2n.pipeline.options import LoopOptions
from q2n.pipeline.sequential import SequentialLoop
from q2n.pipeline.store import RunStore
from q2n.refit.predictions import states_of
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
