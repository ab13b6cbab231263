"""Adam on whatever the weights of a module are made of: the engine of every fit by gradients.

The module itself is not changed: each step computes its weights from the parameters and runs it
with those in their place. Matrix products are in bfloat16 where the machine has them, parameters
and losses in float32.

The loss on some windows is computed before the first step and after the last one, so that a fit
that has made it worse can be given up (loss_change.py).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import Adam
from torch.optim.lr_scheduler import LambdaLR

from q2n.errors import NumericalError
from q2n.linalg.forward_products import forward_products
from q2n.models.targets import Target
from q2n.refit.loss_change import LossChange

_WARM_UP = 0.1

Call = Callable[..., Any]
"""The module with the fitted weights in their place."""
Group = tuple[Sequence[Tensor], float]
"""Parameters, and the largest step of Adam on them."""


@runtime_checkable
class Dense(Protocol):
    """Whatever a linear's weight is computed from."""

    def weight(self, dtype: torch.dtype) -> Float[Tensor, "out in"]:
        """The dense weight, differentiable in the parameters."""


@dataclass(frozen=True, kw_only=True)
class Course:
    """How many steps, and how large."""

    steps: int
    betas: tuple[float, float] = (0.9, 0.999)
    """Of Adam."""
    falling: bool = False
    """The rates rise over the first tenth of the steps and then fall to 0 in a straight line;
    else they stay."""

    def share(self, step: int) -> float:
        """Of the rates, at a step."""
        warm = max(1, round(_WARM_UP * self.steps))
        return min(1.0, (step + 1) / warm) * (1 - step / self.steps) if self.falling else 1.0


@dataclass(frozen=True)
class Descent:
    """What became of the loss."""

    losses: list[float]
    """Of each step before it was taken."""
    change: LossChange
    """On the windows of the check."""


def descend(
    module: nn.Module,
    weights: Callable[[torch.dtype], dict[str, Tensor]],
    groups: Iterable[Group],
    course: Course,
    loss: Callable[[Call, int], Float[Tensor, ""]],
    check: Callable[[Call], Float[Tensor, ""]],
    *,
    name: str,
    without: str,
) -> Descent:
    """Take the steps of `course` down `loss(call, step)`.

    Args:
        module: runs the forward pass; its own parameters stay as they are.
        weights: computes what stands in the place of its parameters, by name; in a dtype.
        groups: the parameters from which `weights` computes.
        loss, check: compute a scalar from `call(*args)`, which runs the module.
        name: of the module, for messages.
        without: the flag that leaves these steps out, for messages.

    Raises:
        NumericalError: a loss is NaN or infinite; names the module and the step.
    """
    optimizer = _optimizer(groups, course)
    schedule = LambdaLR(optimizer, course.share)
    dtype = fast_dtype(module)

    def measured(loss: Callable[..., Float[Tensor, ""]], *step: int) -> Float[Tensor, ""]:
        call = partial(_call, module, weights(dtype))
        with _autocast(module, dtype):
            return loss(call, *step)

    def checked() -> float:
        with torch.no_grad():
            return float(measured(check))

    before, losses = checked(), []
    with torch.enable_grad():
        for step in range(course.steps):
            value = measured(loss, step)
            losses.append(float(value.detach()))
            if not torch.isfinite(value):
                raise NumericalError(
                    f"{name}: the loss of gradient step {step} is {losses[-1]}; "
                    f"use {without}, or --dtype float32"
                )
            value.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            schedule.step()
    return Descent(losses, (before, checked()))


def dense_weights(
    targets: Mapping[str, Target], forms: Mapping[str, Dense], dtype: torch.dtype
) -> dict[str, Tensor]:
    """What stands in the place of the parameters of some targets, laid out as they are."""
    return {
        targets[name].parameter: targets[name].stored(form.weight(dtype))
        for name, form in forms.items()
    }


def fast_dtype(module: nn.Module) -> torch.dtype:
    """bfloat16 where the module's device multiplies it fast or the module is not in float32
    anyway, else float32."""
    own = _loaded(module)
    fast = own.device.type != "cpu" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if fast or own.dtype != torch.float32 else torch.float32


def in_fast_dtype(module: nn.Module) -> AbstractContextManager[Any]:
    """Matrix products of a float32 module inside are in its fast dtype. One in half precision keeps
    its own: on a CPU autocast knows no float16, and norms take no other dtype than theirs."""
    is_wide = _loaded(module).dtype == torch.float32
    return _autocast(module, fast_dtype(module) if is_wide else torch.float32)


def _loaded(module: nn.Module) -> nn.Parameter:
    """One of its parameters: a model without its blocks has empty ones too, which may be first."""
    return next(x for x in module.parameters() if not x.is_meta)


@contextmanager
def _autocast(module: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    device = _loaded(module).device
    autocast = torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
    with forward_products(device), autocast:
        yield


def _call(module: nn.Module, weights: dict[str, Tensor], *args: Any, **kwargs: Any) -> Any:
    return functional_call(module, weights, args, kwargs, tie_weights=False)


def _optimizer(groups: Iterable[Group], course: Course) -> Adam:
    """Adam with a rate for each group that has parameters."""
    own = [{"params": list(parameters), "lr": rate} for parameters, rate in groups if parameters]
    return Adam(own, betas=course.betas, fused=True)
