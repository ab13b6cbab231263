"""Adam on what a quantized module stores in full precision: scales and norm weights.

The module itself is not changed: each step computes the dense weights of its quantized linears
from their trainable forms and runs the module with those in their place. Matrix products are in
bfloat16 where the machine has them, parameters and losses in float32. A rate is a relative
change per step; it rises over the first tenth of the steps and then falls to 0 in a straight line.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import Adam
from torch.optim.lr_scheduler import LambdaLR

from q2n.errors import InputError, NumericalError
from q2n.layers.quantized import QuantizedLinear, Trainable
from q2n.models.targets import Target, targets_in

_WARM_UP = 0.1
_BETAS = (0.9, 0.99)


@dataclass(frozen=True)
class Rates:
    """The largest change per step; 0 leaves that kind of parameter as it is."""

    scale: float
    """Of a scale, relative to it."""
    norm: float
    """Of a norm's weight, relative to it."""
    code: float = 0.0
    """Of a latent code, in steps of the grid."""


@dataclass(frozen=True, kw_only=True)
class Refit:
    """What every refit can be told."""

    steps: int = 32
    """Gradient steps, a calibration window each."""
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


Call = Callable[..., Any]
"""The module with the tuned weights in their place."""


def tune(
    module: nn.Module,
    layers: Mapping[str, QuantizedLinear],
    rates: Rates,
    steps: int,
    loss: Callable[[Call, int], Float[Tensor, ""]],
    *,
    name: str,
) -> Tuned:
    """Take `steps` steps down `loss(call, step)`.

    Args:
        module: runs the forward pass; its own parameters stay as they are.
        layers: its quantized linears, by the names of the module's targets.
        loss: computes a scalar from `call(*args)`, which runs the module.
        name: of the module, for messages.

    Raises:
        NumericalError: the loss is NaN or infinite; names the module and the step.
    """
    trainables = {key: layer.trainable(rounding=rates.code > 0) for key, layer in layers.items()}
    targets, norms = targets_in(module), _norm_vectors(module)
    originals = norm_weights(module) if rates.norm > 0 else {}
    changes = {key: torch.zeros_like(norms[key]) for key in originals}
    optimizer, schedule = _optimizer(trainables.values(), changes.values(), rates, steps)
    dtype = fast_dtype(module)
    losses: list[float] = []
    with torch.enable_grad():
        for step in range(steps):
            weights = _dense_weights(targets, trainables, dtype)
            weights |= norms | {key: norms[key] * (1 + change) for key, change in changes.items()}
            with in_fast_dtype(module):
                value = loss(partial(_call, module, weights), step)
            losses.append(float(value.detach()))
            if not torch.isfinite(value):
                raise NumericalError(
                    f"{name}: the loss of refit step {step} is {losses[-1]}; "
                    "use --refit off, or --dtype float32"
                )
            value.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            schedule.step()
    tuned_norms = {
        key: (norms[key] * (1 + changes[key].detach())).to(x.dtype) for key, x in originals.items()
    }
    return Tuned({key: x.quantized() for key, x in trainables.items()}, tuned_norms, losses)


def _dense_weights(
    targets: Mapping[str, Target], trainables: Mapping[str, Trainable], dtype: torch.dtype
) -> dict[str, Tensor]:
    """What stands in the place of the quantized parameters, by name and laid out as they are."""
    return {
        targets[key].parameter: targets[key].stored(x.weight(dtype))
        for key, x in trainables.items()
    }


def norm_weights(module: nn.Module) -> dict[str, Float[Tensor, " _"]]:
    """The vectors with which norms multiply, by name."""
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


def _norms(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, part in module.named_modules():
        weight = getattr(part, "weight", None)
        if isinstance(weight, Tensor) and weight.ndim == 1:
            yield name, part


def fast_dtype(module: nn.Module) -> torch.dtype:
    """bfloat16 where the module's device multiplies it fast or the module is not in float32
    anyway, else float32."""
    own = next(module.parameters())
    fast = own.device.type != "cpu" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if fast or own.dtype != torch.float32 else torch.float32


def in_fast_dtype(module: nn.Module) -> AbstractContextManager[Any]:
    """Matrix products inside are in the module's fast dtype."""
    dtype, device = fast_dtype(module), next(module.parameters()).device
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def shuffled(count: int, steps: int, seed: int) -> list[int]:
    """A number below `count` for each step; each comes once before one comes again."""
    generator = torch.Generator().manual_seed(seed)
    rounds = [torch.randperm(count, generator=generator) for _ in range(-(-steps // count))]
    return torch.cat(rounds)[:steps].tolist()


def _call(module: nn.Module, weights: dict[str, Tensor], *args: Any, **kwargs: Any) -> Any:
    return functional_call(module, weights, args, kwargs, tie_weights=False)


def _optimizer(
    trainables: Collection[Trainable], changes: Collection[Tensor], rates: Rates, steps: int
) -> tuple[Adam, LambdaLR]:
    """Adam with a rate for each kind of parameter, and the rates' course."""
    for change in changes:
        change.requires_grad_(True)
    groups = [
        {"params": [x.scale_change for x in trainables], "lr": rates.scale},
        {"params": list(changes), "lr": rates.norm},
        {
            "params": [x.code_change for x in trainables if x.code_change is not None],
            "lr": rates.code,
        },
    ]
    optimizer = Adam([x for x in groups if x["params"]], betas=_BETAS, fused=True)
    warm = max(1, round(_WARM_UP * steps))
    return optimizer, LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / warm) * (1 - step / steps)
    )
