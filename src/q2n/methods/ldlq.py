r"""LDLQ (Chee et al. 2023, QuIP): rounding with linear feedback from the Hessian's LDL factor.

Letters: `H` damped Gram matrix of the input (m x m), `W` weight, `Q` its rounded form,
`E = W - Q`.

    H = (L + I) D (L + I)^T,  L strictly lower;   for i = m-1 .. 0:
    Q_i = nearest level to  W_i + sum_{j>i} E_j L_ji.

With the columns in reverse, `L + I` is the unit upper factor `R / diag(R)` of `H = R R^T`
(linalg/factor.py): LDLQ is GPTQ without act-order that visits the columns from the last to the
first. Factor and sweep are GPTQ's. *Sorted* (QuIP's `ldlqRG`): the columns are first put in
ascending order of H_jj, so that those with the largest input are rounded first: act-order.

Greedy passes may follow (descent.py).

Unbiased rounding goes up with the probability of the fractional part, by noise added before
rounding to nearest. The feedback is linear, so the error has mean 0 where nothing is clamped.

Grids: `b`, grids/centred.py; `lloyd-max`, grids/lloyd_max.py; `minmax`, grids/affine.py, with one
scale a row. Dead columns (input always 0) are rounded from 0.

The `b` grid cuts off weights beyond its spread. The released code clamps them before it rounds, so
that what was cut off is in no E and the columns that follow cannot make up for it: from 3 bits on
that was up to half of the error (docs/mathematics.md). Here E is the error to W; `clamp_first` is
the released code's way.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from q2n.errors import InputError
from q2n.grids import centred, lloyd_max
from q2n.grids.affine import BITS, AffineForm, AffineGrid, AffineLinear
from q2n.grids.centred import CentredLinear
from q2n.grids.lloyd_max import LloydMaxLinear
from q2n.grids.quantized import Form, QuantizedLinear
from q2n.linalg.factor import Feedback, feedback
from q2n.linalg.statistics import Needs
from q2n.methods.descent import descend
from q2n.methods.problem import LayerProblem, Method
from q2n.methods.rounding import Affine, Codebook, Rule
from q2n.methods.sweep import Sweep, sweep

_BLOCK = 128
"""Columns between two matrix products."""


@dataclass(frozen=True, kw_only=True)
class LDLQOptions(Method):
    """The options of LDLQ, for itself and for what is made of it."""

    bits_offered: ClassVar[str] = ", ".join(map(str, BITS))

    bits: int = 4
    """2, 3, 4 or 8."""
    grid: Literal["b", "lloyd-max", "minmax"] = "b"
    """b: levels spread evenly around 0, one scale a matrix; lloyd-max: the same with levels closer
    where Gaussian weights are likelier; minmax: evenly over each row's range."""
    spread: float | None = None
    """How far the b grid reaches, in root mean squares of the matrix (QuIP as published: 2.4). By
    default what serves Gaussian weights best: 1.49, 2.05, 2.51, 3.92 at 2, 3, 4, 8 bits."""
    damping: float = 0.01
    """Added to the Gram matrix's diagonal, as a share of its mean."""
    order: Literal["natural", "sorted"] = "natural"
    """Columns from the last to the first, or from the largest input to the smallest."""
    greedy_passes: int = 1
    """Passes of descent on the loss after the rounding, at most."""
    unbiased: bool = False
    """Round up with the probability of the fractional part."""
    clamp_first: bool = False
    """Clamp the weights to the b grid's range beforehand, as the released code does. Otherwise
    what the range cuts off is fed back like any other error."""

    def __post_init__(self) -> None:
        AffineGrid(bits=self.bits)  # refuses other widths
        if not (math.isfinite(self.damping) and self.damping >= 0):
            raise InputError(f"damping must be finite and at least 0, got {self.damping}")
        if self.spread is not None and not (math.isfinite(self.spread) and self.spread > 0):
            raise InputError(f"spread must be finite and above 0, got {self.spread}")
        if self.spread is not None and self.grid != "b":
            raise InputError("spread belongs to the b grid: use grid='b', or leave it out")
        if self.grid == "lloyd-max" and self.unbiased:
            raise InputError("unbiased rounding needs even levels: use grid='b' or 'minmax'")
        if self.greedy_passes < 0:
            raise InputError(f"greedy_passes must be at least 0, got {self.greedy_passes}")
        if self.unbiased and self.greedy_passes:
            raise InputError(
                "greedy passes round to nearest, which undoes unbiased rounding: "
                "with unbiased use greedy_passes=0"
            )

    @property
    def needs(self) -> Needs:
        return Needs.GRAM


@dataclass(frozen=True, kw_only=True)
class LDLQ(LDLQOptions):
    """Rounding with feedback from the LDL factor of the input's second moments."""

    name: ClassVar[str] = "ldlq"

    @property
    def form(self) -> Form:
        if self.grid == "minmax":
            return AffineForm(bits=self.bits, group_size=-1)
        return Form(kind=(CentredLinear if self.grid == "b" else LloydMaxLinear).kind)

    def quantize(self, problem: LayerProblem) -> QuantizedLinear:
        statistics = problem.statistics
        assert statistics is not None
        statistics.require_finite(problem.name)
        gram = statistics.gram
        visit, back = statistics.once(
            ("ldlq", self.damping, self.order), lambda: self._factor(gram, problem.name)
        )
        dead = torch.zeros_like(back.dead).index_copy_(0, visit, back.dead)
        levels = self._levels(problem, problem.weight.masked_fill(dead, 0))
        weight = levels.weight.T[visit]

        def rounded(matrix: Tensor, offset: Tensor | None) -> Sweep:
            return sweep(weight, matrix, levels.rule, block_size=_BLOCK, offset=offset)

        first = rounded(back.matrix, self._noise(levels, problem))
        found = descend(first, _damped(gram, visit, back), self.greedy_passes, rounded)
        codes = torch.empty_like(problem.weight, dtype=torch.uint8)
        codes[:, visit] = found.codes.T
        return levels.stored(codes).with_record(
            damping=back.damping,
            dead_columns=int(dead.sum()),
            greedy_changes=int((found.codes != first.codes).sum()),
        )

    def _factor(self, gram: Float[Tensor, "m m"], name: str) -> tuple[Int[Tensor, " m"], Feedback]:
        """The layer's columns in visiting order, and the feedback in that order."""
        visit = torch.arange(len(gram), device=gram.device).flip(0)
        if self.order == "sorted":
            visit = torch.argsort(gram.diagonal(), descending=True, stable=True)
        return visit, feedback(gram[visit][:, visit], self.damping, name=name)

    def _levels(self, problem: LayerProblem, weight: Float[Tensor, "out m"]) -> "_Levels":
        if self.grid == "minmax":
            return _minmax(weight, self.bits, problem.scale_dtype, problem.name)
        even = self.grid == "b"
        best = centred.GAUSSIAN_SPREAD[self.bits] if even else lloyd_max.spread(self.bits)
        spread = best if self.spread is None else self.spread
        scale = centred.fit(weight, spread, problem.scale_dtype, problem.name)
        if self.clamp_first:
            weight = weight.clamp(-scale.to(weight), scale.to(weight))
        return (_centred if even else _lloyd_max)(weight, scale, self.bits)

    def _noise(self, levels: "_Levels", problem: LayerProblem) -> Float[Tensor, "m out"] | None:
        """Uniform over one step: rounding to nearest then rounds up with the probability of
        the fractional part."""
        if not self.unbiased:
            return None
        assert isinstance(levels.rule, Affine)
        generator = torch.Generator().manual_seed(problem.seed)
        uniform = torch.rand(problem.weight.T.shape, generator=generator)
        return (uniform.to(problem.weight) - 0.5) * levels.rule.scale


@dataclass(frozen=True, eq=False)
class _Levels:
    """A grid as the sweep takes it."""

    weight: Float[Tensor, "out m"]
    """The weight in the coordinates of the rule."""
    rule: Rule
    stored: Callable[[UInt8[Tensor, "out m"]], QuantizedLinear]
    """The layer with these codes."""


def _centred(weight: Float[Tensor, "out m"], scale: Float[Tensor, "1"], bits: int) -> _Levels:
    """The levels over [-S, S], moved up by S: then code 0 is 0."""
    end = scale.to(weight)
    step = (2 * end / (2**bits - 1)).expand(1, len(weight)).contiguous()
    zero = torch.zeros_like(step, dtype=torch.uint8)
    return _Levels(
        weight + end,
        _one_group(step, zero, weight.shape[1], bits),
        lambda codes: CentredLinear(codes=codes, scale=scale, bits=bits),
    )


def _lloyd_max(weight: Float[Tensor, "out m"], scale: Float[Tensor, "1"], bits: int) -> _Levels:
    stored = partial(LloydMaxLinear, scale=scale, bits=bits)
    every = torch.arange(2**bits, dtype=torch.uint8, device=weight.device).unsqueeze(0)
    entries = stored(codes=every).dequantize().T.to(weight)
    return _Levels(
        weight,
        Codebook(entries.expand(-1, len(weight)).contiguous()),
        lambda codes: stored(codes=codes),
    )


def _minmax(weight: Float[Tensor, "out m"], bits: int, dtype: torch.dtype, name: str) -> _Levels:
    scale, zero = AffineGrid(bits=bits).fit(weight, dtype, name)
    return _Levels(
        weight,
        _one_group(scale.T.to(weight).contiguous(), zero.T.contiguous(), weight.shape[1], bits),
        lambda codes: AffineLinear(
            codes=codes,
            scale=scale,
            zero=zero,
            bits=bits,
            group_size=weight.shape[1],
            symmetric=False,
        ),
    )


def _one_group(
    scale: Float[Tensor, "1 out"], zero: UInt8[Tensor, "1 out"], columns: int, bits: int
) -> Affine:
    group = torch.zeros(columns, dtype=torch.int64, device=scale.device)
    return Affine(scale, zero, group, 2**bits - 1)


def _damped(
    gram: Float[Tensor, "m m"], visit: Int[Tensor, " m"], back: Feedback
) -> Float[Tensor, "m m"]:
    """H in visiting order, as it was factored."""
    hessian = gram[visit][:, visit]
    diagonal = hessian.diagonal()
    mean = diagonal[~back.dead].mean() if not bool(back.dead.all()) else diagonal.new_ones(())
    diagonal.copy_(torch.where(back.dead, mean, diagonal) + back.damping * mean)
    return hessian
