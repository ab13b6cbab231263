r"""Incoherence processing (Chee et al. 2023, QuIP): any method on weights that no basis favours.

A grid with one range suits a matrix whose entries are alike, and error feedback a Hessian whose
eigenvectors point at no coordinate. Random rotations U, V on both sides make both so with high
probability: the layer is quantized as `W' = U W diag(s) V^T` for inputs `x' = V diag(s)^-1 x`
(linalg/basis.py), which have the Gram matrix

    G' = V diag(s)^-1 G diag(s)^-1 V^T.

Error at the output is the same in both bases, so what minimises it there minimises it here. The
rescaling s makes `tr(G') |W'|^2` least (`balancing`).

A channel without input is mixed with the others, so that no column of the new basis is dead. Its
weights lose what those of any direction with little input lose; nothing is done about it.

s depends on the weight, so linears that read the same tensor have different G', and one
factorisation each.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

from q2n.errors import InputError
from q2n.layers.quantized import QuantizedLinear, StorageSpec
from q2n.layers.rotated import LARGEST_FACTOR, RESCALE_DTYPE, RotatedLinear, basis_of
from q2n.linalg.basis import balancing
from q2n.linalg.random_orthogonal import Mode, factors
from q2n.linalg.required_statistics import RequiredStatistics
from q2n.method import LayerProblem, Method, Work, Wrapper


@dataclass(frozen=True, kw_only=True)
class Incoherence(Wrapper):
    """A method in a random basis."""

    name: ClassVar[str] = "incoherence"

    incoherence_rescale: bool = False
    """Balance the energies of weight and input, channel by channel."""
    projection: Mode = "kronecker"
    """How the random rotations are made (linalg/random_orthogonal.py)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.inner.fits_blocks:
            raise InputError(
                f"{self.inner.title} is fitted on the weights as they are, not in a random basis: "
                "leave out --incoherence"
            )

    @property
    def title(self) -> str:
        return f"{self.inner.title} in a random basis ({self.projection})"

    @property
    def required_statistics(self) -> RequiredStatistics:
        return self.inner.required_statistics | RequiredStatistics.GRAM

    @property
    def storage(self) -> StorageSpec:
        return StorageSpec(kind=RotatedLinear.kind)

    def check(self, name: str, shape: tuple[int, int]) -> None:
        for width in shape:
            p, q = factors(width)
            if max(p, q) > LARGEST_FACTOR:
                raise InputError(
                    f"{name}: its width {width} = {p} x {q} has no useful factorisation, a random "
                    f"rotation would need a dense block of {max(p, q)}; leave the layer out with "
                    "--ignore, or use --incoherence off"
                )
        super().check(name, shape)

    @property
    def trial(self) -> Method:
        return replace(self, inner=self.inner.trial)

    @property
    def own_work(self) -> Work:
        return Work(layer=0.5, site=0.5, weight=4000.0)

    def quantize(self, problem: LayerProblem) -> QuantizedLinear:
        statistics = problem.measured
        rows, columns = problem.weight.shape
        rescale = None
        if self.incoherence_rescale:
            rescale = balancing(problem.weight, statistics.gram).to(RESCALE_DTYPE)
        basis = basis_of((rows, columns), self.projection, problem.seed, rescale)
        gradients = problem.gradients
        if gradients is not None:
            gradients = basis.outputs(basis.outputs(gradients).T)
        moved = replace(
            problem,
            weight=basis.weight(problem.weight),
            statistics=statistics.in_basis(basis.inputs, basis.outputs),
            gradients=gradients,
        )
        layer = self.inner.quantize(moved)
        return RotatedLinear(
            inner=layer,
            projection=self.projection,
            seed=problem.seed,
            rescale=rescale,
            record=layer.record,
        )
