r"""Refit of the whole model: scales and norm weights toward the full-precision model's predictions.

The error of a block is not worth the same in every direction: what counts is what it does to
the predictions. With all codes fixed, the scales of all layers and the weights of all norms
are tuned to bring the next-token distributions s of the quantized model close to the p of the
full-precision model, averaged over the tokens of one calibration window per step:

    KL(p | s) = sum_v p_v (log p_v - log s_v)      (predictions.py).

Training scales alone, end to end, is the second phase of EfficientQAT (Chen et al. 2024); here
the teacher's distribution takes the place of the next token. It sees across blocks, so it wins
more per second than refitting block by block (docs/LOG.md). The price is memory: the whole model,
a byte for each quantized weight (a few of a partly binary layer), and the dense weights and
activations of one window.

The steps need text of their own. On the windows to which codes and scales were fitted the model is
nearer to its goal than it is on any other text, by a factor of five at 2 bits, and their gradients
know nothing of what is wrong elsewhere (docs/LOG.md). For the same reason the check is on windows
that no step sees.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from q2n.layers.quantized import QuantizedLinear
from q2n.models.head import head_and_body, states_in
from q2n.models.ties import aliases
from q2n.refit.descent import Call
from q2n.refit.predictions import divergence, states_of
from q2n.refit.tuner import CHECKED, Rates, Refit, Tuned, tune


@dataclass(frozen=True, kw_only=True)
class ModelRefit(Refit):
    """How the model is refitted."""

    rates: Rates = Rates(scale=0.001, norm=0.003)

    @property
    def windows(self) -> int:
        """Windows of text that are asked for: one a step, and those of the check."""
        return self.steps + CHECKED

    def __call__(
        self,
        model: PreTrainedModel,
        layers: Mapping[str, QuantizedLinear],
        norm_weights: Mapping[str, Float[Tensor, "..."]],
        tokens: Int[Tensor, "windows length"],
        *,
        progress: Callable[[], None],
    ) -> Tuned:
        """All layers and norm weights, tuned, by their full names.

        Args:
            model: the full-precision model, which teaches. It is left frozen, its norms with
                `norm_weights`.
            layers: the quantized linears by full name.
            norm_weights: those that were refitted before, by full name.
            tokens: text that the layers were not fitted to, as many as `windows` says, or fewer
                that come again. The last ones are those of the check, which no step sees.
            progress: called after each step.

        Raises:
            NumericalError: the loss is not finite.
        """
        seen = len(tokens) - CHECKED
        order = [step % seen for step in range(self.steps)] + [*range(seen, len(tokens))]
        model.requires_grad_(False)
        head, body = head_and_body(model, tokens)
        prefix = "".join(f"{name}." for name, x in model.named_modules() if name and x is body)
        teacher = states_of(body, tokens, set(order))
        for name, weight in norm_weights.items():
            model.get_parameter(name).data.copy_(weight)

        def loss(call: Call, number: int) -> Tensor:
            window = tokens[order[number]].unsqueeze(0).to(model.device)
            states = states_in(call(window, use_cache=False))[0]
            return divergence(states, teacher[order[number]].to(states.device), head)

        own = {name.removeprefix(prefix): layer.to(model.device) for name, layer in layers.items()}
        kind = type(model).__name__
        tuned = tune(
            body,
            own,
            self.rates,
            self.steps,
            loss,
            checked=range(self.steps, len(order)),
            fixed=aliases(body).keys(),
            progress=progress,
            name=kind,
        )
        return Tuned(
            {prefix + name: layer for name, layer in tuned.layers.items()},
            {prefix + name: weight for name, weight in tuned.norm_weights.items()},
            tuned.losses,
            tuned.change,
        )
