"""A rotated source whose model is turned further (transforms/turn.py).

The rule of each tensor is said once: the source applies it to tensors that are read, refit/rotation
to those of a model in memory, where it is differentiable.
"""

from collections.abc import Callable, Mapping
from functools import partial

from jaxtyping import Shaped
from torch import Tensor

from q2n.models.layout import DOWN, NORM_OF, OUTPUT, VALUE, DecoderLayout
from q2n.models.rotated_source import RotatedSource, RuntimeSource
from q2n.transforms.turn import Turn

Rule = Callable[[Turn, Tensor], Tensor]


def inside_rules(layout: DecoderLayout) -> dict[str, Rule]:
    """What becomes of the tensors of the blocks, by name."""
    rules: dict[str, Rule] = {}
    for index in range(layout.count):
        block = f"{layout.blocks}.{index}"
        rules |= {f"{block}.{name}.weight": Turn.reader for name in NORM_OF if name != VALUE}
        rules[f"{block}.{VALUE}.weight"] = partial(_in_block, Turn.value, index)
        rules[f"{block}.{VALUE}.bias"] = partial(_in_block, Turn.value_bias, index)
        rules[f"{block}.{OUTPUT}.weight"] = partial(_in_block, Turn.attention_output, index)
        rules[f"{block}.{DOWN}.weight"] = Turn.writer
        rules |= {f"{block}.{name}.bias": Turn.writer_bias for name in (OUTPUT, DOWN)}
    return rules


def _in_block(
    rule: Callable[[Turn, int, Tensor], Tensor], index: int, turn: Turn, x: Tensor
) -> Tensor:
    return rule(turn, index, x)


class TurnedSource(RuntimeSource):
    """The same model after a turn; what runs beside the weights stays."""

    def __init__(self, inner: RotatedSource, turn: Turn):
        super().__init__(inner, inner.parts)
        layout = inner.layout
        outside = (f"{layout.embeddings}.weight", f"{layout.head}.weight")
        self.turn = turn
        self._rules: Mapping[str, Rule] = {
            **inside_rules(layout),
            **dict.fromkeys(outside, Turn.reader),
        }

    def tensor(self, name: str) -> Shaped[Tensor, "..."]:
        """One tensor of the turned model: in float64 through the turn, in float32 after it."""
        tensor = self.inner.tensor(name)
        if name not in self._rules:
            return tensor
        return self._rules[name](self.turn, tensor.double()).float()
