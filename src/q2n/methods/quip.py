r"""QuIP (Chee et al. 2023): LDLQ on incoherent weights (ldlq.py, incoherence.py).

Both dampings. The released code rescales H to a mean diagonal of 1 and adds `d1 I` before it
rotates (`projection_damping`), then adds `d2` times the mean diagonal (`damping`). As `V V^T = I`,
both add a multiple of I to the rotated matrix and leave its mean diagonal at (1 + d1) (1 + d2)
times the first. One damping by `(1 + d1) (1 + d2) - 1` is the same.

The rescaling of input channels (`rescale`) is part of the published method and off by default: on
inputs with massive activations it spends the precision on them (docs/mathematics.md has the reason,
docs/LOG.md the perplexities, several times higher with it). The grid's reach is not the published
one either (layers/centred.py). The method as published: `rescale=True, spread=2.4`.

What is put around QuIP (the correction before it, the null-space or the output step after it) can
look at the layer in either space (`step_space`):

- rotated: the random basis goes around all of it. A factor for each row of W' is absorbed by the
  stored scale of that row (the one scale of the `b` grid becomes one a row);
- original: after the rotation back. A factor for each output channel is stored as a gain.

Both store the same number of bits if scales have 16. Rotated is the default:
with rescaling the paper's alpha raised the output error of none of three measured layers there, and
of one of them by a seventh in the original space; without, it did less harm there as well. (Factors
fitted to the output, a small gain in both, are a little better in the original. All figures:
docs/mathematics.md.)
"""

import math
from dataclasses import dataclass, fields, replace
from typing import ClassVar, Literal

from q2n.errors import InputError
from q2n.layers.quantized import QuantizedLinear, StorageSpec
from q2n.layers.rotated import Projection
from q2n.linalg.statistics import RequiredStatistics
from q2n.method import LayerProblem, Method, Wrap, Wrapper
from q2n.methods.ldlq import LDLQ, LDLQOptions
from q2n.wrappers.incoherence import Incoherence


@dataclass(frozen=True, kw_only=True)
class QuIP(LDLQOptions):
    """LDLQ in a random basis, in which no weight and no input direction stands out."""

    name: ClassVar[str] = "quip"

    rescale: bool = False
    """Balance the energies of weight and input, channel by channel, as published."""
    projection: Projection = "kronecker"
    """The random rotations of both sides: kronecker (one small rotation an axis), blocks
    (independent ones), blocks_unpermuted (those without random permutations), or off."""
    projection_damping: float = 0.01
    """As `damping`, before the projection; not used without one."""
    step_space: Literal["rotated", "original"] = "rotated"
    """Where the correction before and the step after the method look at the layer: within the
    random basis, or outside it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        damping = self.projection_damping
        if not (math.isfinite(damping) and damping >= 0):
            raise InputError(f"projection_damping must be finite and at least 0, got {damping}")

    @property
    def storage(self) -> StorageSpec:
        return self.around(self.rounding).storage

    def check(self, name: str, shape: tuple[int, int]) -> None:
        self.around(self.rounding).check(name, shape)

    def quantize(self, problem: LayerProblem) -> QuantizedLinear:
        return self.around(self.rounding).quantize(problem)

    def with_step(self, step: Wrap) -> Method:
        stepped = step(inner=self)
        return stepped if self.step_space == "original" else Rotated(inner=stepped)

    @property
    def rounding(self) -> LDLQ:
        """What happens in the random basis."""
        options = {item.name: getattr(self, item.name) for item in fields(LDLQ)}
        if self.projection != "off":
            options["damping"] = (1 + self.projection_damping) * (1 + self.damping) - 1
        return LDLQ(**options)

    def around(self, inner: Method) -> Method:
        """`inner` in the random basis."""
        if not self.rescale and self.projection == "off":
            return inner
        return Incoherence(inner=inner, rescale=self.rescale, projection=self.projection)


@dataclass(frozen=True, kw_only=True)
class Rotated(Wrapper):
    """What was put around QuIP, done in its random basis: `inner` is a chain of wrappers that ends
    with QuIP, and what is done is QuIP's basis around these wrappers around LDLQ."""

    name: ClassVar[str] = "rotated"

    @property
    def required_statistics(self) -> RequiredStatistics:
        return self.inner.required_statistics

    @property
    def title(self) -> str:
        return self.inner.title

    def quantize(self, problem: LayerProblem) -> QuantizedLinear:
        quip, chain = _unwrapped(self.inner)
        return quip.around(chain).quantize(problem)

    def with_step(self, step: Wrap) -> Method:
        return Rotated(inner=step(inner=self.inner))


def _unwrapped(method: Method) -> tuple[QuIP, Method]:
    """QuIP at the end of a chain of wrappers, and the chain with LDLQ in its place."""
    if isinstance(method, QuIP):
        return method, method.rounding
    assert isinstance(method, Wrapper)
    quip, inner = _unwrapped(method.inner)
    return quip, replace(method, inner=inner)
