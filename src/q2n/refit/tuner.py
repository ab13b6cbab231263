"""Gradient steps on what a quantized module stores in full precision: scales and norm weights.

How steps are taken: descent.py. A rate is a relative change per step; it rises over the first
tenth of the steps and then falls to 0 in a straight line. Where the loss has risen on the windows
of the check, everything stays as it was.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from q2n.errors import InputError
from q2n.layers.quantized import QuantizedLinear
from q2n.models.norms import offset_of
from q2n.models.targets import targets_in
from q2n.refit.descent import Call, Course, dense_weights, descend
from q2n.refit.loss_change import LossChange, rose

_BETAS = (0.9, 0.99)
CHECKED = 4
"""Windows on which a refit is checked, at most."""


@dataclass(frozen=True)
class Rates:
    """The largest change per step; 0 leaves that kind of parameter as it is."""

    scale: float
    """Of a scale, relative to it."""
    norm: float
    """Of what a norm multiplies with (its weight, or 1 + its weight), relative to it."""
    code: float = 0.0
    """Of a latent code, in steps of the grid."""


@dataclass(frozen=True, kw_only=True)
class Refit:
    """What every refit can be told."""

    steps: int = 32
    """Gradient steps, a window each."""
    rates: Rates

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InputError(f"refit_steps must be at least 1, got {self.steps}")


@dataclass(frozen=True)
class Tuned:
    """What tuning gave, by the module's own names."""

    layers: dict[str, QuantizedLinear]
    norm_weights: dict[str, Float[Tensor, " _"]]
    """In their own dtype."""
    losses: list[float]
    """The loss of each step before it was taken."""
    change: LossChange
    """Of the loss on the windows of the check; everything is as it was where it rose."""


def tune(
    module: nn.Module,
    layers: Mapping[str, QuantizedLinear],
    rates: Rates,
    steps: int,
    loss: Callable[[Call, int], Float[Tensor, ""]],
    *,
    checked: Sequence[int] | None = None,
    fixed: Collection[str] = (),
    progress: Callable[[], None] = lambda: None,
    name: str,
) -> Tuned:
    """Take `steps` steps down `loss(call, step)`.

    Args:
        module: runs the forward pass; its own parameters stay as they are.
        layers: its quantized linears, by the names of the module's targets.
        loss: computes a scalar from `call(*args)`, which runs the module, on the window of a step.
        checked: numbers that `loss` takes for the windows of the check; by default those of the
            first steps.
        fixed: norm weights that stay, for they are those of another norm too.
        progress: called after the loss of each step.
        name: of the module, for messages.

    Raises:
        NumericalError: the loss is NaN or infinite; names the module and the step.
    """
    trainables = {key: layer.trainable(rounding=rates.code > 0) for key, layer in layers.items()}
    targets, norms = targets_in(module), _norm_vectors(module)
    originals = norm_weights(module) if rates.norm > 0 else {}
    originals = {key: x for key, x in originals.items() if key not in fixed}
    changes = {key: torch.zeros_like(norms[key]).requires_grad_() for key in originals}
    offsets = _norm_offsets(module) if originals else {}
    codes = [x.code_change for x in trainables.values() if x.code_change is not None]
    numbers = range(min(CHECKED, steps)) if checked is None else checked

    def check(call: Call) -> Float[Tensor, ""]:
        return torch.stack([loss(call, number) for number in numbers]).mean()

    def stepped(call: Call, step: int) -> Float[Tensor, ""]:
        value = loss(call, step)
        progress()
        return value

    def changed_norms() -> dict[str, Tensor]:
        # What a norm multiplies with is changed in proportion: w itself may be 0 in 1 + w.
        return {key: norms[key] + (norms[key] + offsets[key]) * x for key, x in changes.items()}

    def weights(dtype: torch.dtype) -> dict[str, Tensor]:
        return dense_weights(targets, trainables, dtype) | norms | changed_norms()

    descent = descend(
        module,
        weights,
        [
            ([x.scale_change for x in trainables.values()], rates.scale),
            (list(changes.values()), rates.norm),
            (codes, rates.code),
        ],
        Course(steps=steps, betas=_BETAS, falling=True),
        stepped,
        check,
        name=name,
        without="--refit off",
    )
    if rose(*descent.change):
        return Tuned(dict(layers), dict(originals), descent.losses, descent.change)
    tuned_norms = {key: x.detach().to(originals[key].dtype) for key, x in changed_norms().items()}
    tuned = {key: x.quantized() for key, x in trainables.items()}
    return Tuned(tuned, tuned_norms, descent.losses, descent.change)


def norm_weights(module: nn.Module) -> dict[str, Float[Tensor, " _"]]:
    """The weights of norms, by name."""
    return {
        f"{name}.weight": part.get_parameter("weight").detach() for name, part in _norms(module)
    }


def _norm_vectors(module: nn.Module) -> dict[str, Tensor]:
    """Weights and biases of the norms by name, in float32: layer_norm wants one dtype for both."""
    return {
        f"{name}.{key}": vector.detach().float()
        for name, part in _norms(module)
        for key, vector in part.named_parameters(recurse=False)
    }


def _norm_offsets(module: nn.Module) -> dict[str, float]:
    """What each norm adds to its weight, by the weight's name."""
    return {f"{name}.weight": offset_of(part) for name, part in _norms(module)}


def _norms(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, part in module.named_modules():
        weight = getattr(part, "weight", None)
        if isinstance(weight, nn.Parameter) and weight.ndim == 1:  # FalconMamba's may be constants
            yield name, part


def shuffled(count: int, steps: int, seed: int) -> list[int]:
    """A number below `count` for each step; each comes once before one comes again."""
    generator = torch.Generator().manual_seed(seed)
    rounds = [torch.randperm(count, generator=generator) for _ in range(-(-steps // count))]
    return torch.cat(rounds)[:steps].tolist()
