r"""The rotation of a decoder with RMSNorm and gated MLPs (QuaRot, Ashkboos et al. 2024).

Letters: `h` residual stream, `gamma` the weight of a norm, `R` the rotation of the residual stream,
`M` of a head's channels, `A` of the heads among each other, `D` of the gated MLP's channels; all
orthogonal.

- RMSNorm without its weight commutes with R, since |R h| = |h|. So the norm weight goes into the
  weights that read the norm, `W diag(gamma)`, and becomes 1.
- R1: the stream carries R h. What writes to it writes R y (embeddings, o, down: `R W`, `R b`), what
  reads it undoes R (q, k, v, gate, up, head: `W diag(gamma) R^T`).
- R2: each head's values are M v (`M W_v`, `M b_v`), and attention, linear in the values, passes on
  M z for each head. In front of o the heads are mixed *at runtime*: (A (x) I) (M z) = (A (x) M) z,
  so o's weight is `R W_o (A (x) M)^T`. That holds for any orthogonal A: a number of heads without a
  Hadamard matrix takes a Haar matrix.
- R4: the gated product is elementwise, so its rotation D can only be made at runtime, in front of
  down: `R W_down D^T`.
- Without what is made at runtime, A = D = I (SpinQuant's "no had"): the rotated model is one of its
  own architecture, for any program that runs it.
- R3: after the position embedding, queries and keys of each head are both multiplied by M at
  runtime; (M q)^T (M k) = q^T k. Of use only where keys are rounded.

The released code also subtracts the mean of each embedding: right for LayerNorm, and not function
preserving here. Left out.
"""

from dataclasses import dataclass
from typing import Literal, Self

import torch
from jaxtyping import Float
from torch import Tensor

from q2n.linalg.kronecker import Factor, KroneckerMatrix
from q2n.linalg.random_orthogonal import haar_factor, mixing_factors, random_signs

Factors = tuple[Factor, ...]


@dataclass(frozen=True, kw_only=True)
class DecoderSizes:
    """The widths that are rotated."""

    hidden: int
    heads: int
    """Of queries."""
    head_dim: int
    intermediate: int


@dataclass(frozen=True, kw_only=True, eq=False)
class DecoderRotation:
    """The rotations of one decoder, and each kind of weight after them."""

    residual: KroneckerMatrix
    """R."""
    head: KroneckerMatrix
    """M."""
    mixing: KroneckerMatrix
    """A (x) I, at runtime in front of o."""
    heads: KroneckerMatrix
    """A (x) M, which o's weight undoes."""
    gated: KroneckerMatrix
    """D, at runtime in front of down."""

    @classmethod
    def build(
        cls,
        sizes: DecoderSizes,
        residual: Literal["hadamard", "random"],
        seed: int,
        *,
        online: bool = True,
    ) -> Self:
        """Hadamard matrices where there are any, Haar matrices where not; R with random signs, or
        a Haar matrix altogether if it is to be `random`. Not `online`: A and D are the identity,
        and weights hold all of the rotation."""
        stream = (
            KroneckerMatrix((haar_factor(sizes.hidden, seed, stream=0),))
            if residual == "random"
            else KroneckerMatrix(
                mixing_factors(sizes.hidden, seed, stream=0),
                random_signs(sizes.hidden, seed, stream=1),
            )
        )
        mixing: Factors = (Factor.identity(sizes.heads),)
        gated: Factors = (Factor.identity(sizes.intermediate),)
        if online:
            mixing = mixing_factors(sizes.heads, seed, stream=2)
            gated = mixing_factors(sizes.intermediate, seed, stream=4)
        head = mixing_factors(sizes.head_dim, seed, stream=3)
        return cls(
            residual=stream,
            head=KroneckerMatrix(head),
            mixing=KroneckerMatrix((*mixing, Factor.identity(sizes.head_dim))),
            heads=KroneckerMatrix((*mixing, *head)),
            gated=KroneckerMatrix(gated),
        )

    def embedding(self, weight: Float[Tensor, "words hidden"]) -> Float[Tensor, "words hidden"]:
        """`R W`, of the stream's vector for each word."""
        return self.residual.apply_exactly(weight)

    def reader(
        self, weight: Float[Tensor, "out hidden"], norm_weight: Float[Tensor, " hidden"]
    ) -> Float[Tensor, "out hidden"]:
        """`W diag(gamma) R^T`, of what reads the stream through a norm with this weight."""
        return self.residual.apply_exactly(weight, norm_weight)

    def value(
        self, weight: Float[Tensor, "out hidden"], norm_weight: Float[Tensor, " hidden"]
    ) -> Float[Tensor, "out hidden"]:
        """`M W_v` of each head, W_v a reader: `size` rows per head."""
        rows = self.reader(weight, norm_weight).unflatten(0, (-1, self.head.size))
        return torch.cat([self.head.apply_to_outputs_exactly(head) for head in rows])

    def value_bias(self, bias: Float[Tensor, " out"]) -> Float[Tensor, " out"]:
        """`M b_v` of each head."""
        return self.head.apply(bias.unflatten(0, (-1, self.head.size))).flatten()

    def attention_output(
        self, weight: Float[Tensor, "hidden heads"]
    ) -> Float[Tensor, "hidden heads"]:
        """`R W_o (A (x) M)^T`."""
        return self.residual.apply_to_outputs_exactly(self.heads.apply_exactly(weight))

    def gated_output(
        self, weight: Float[Tensor, "hidden intermediate"]
    ) -> Float[Tensor, "hidden intermediate"]:
        """`R W_down D^T`."""
        return self.residual.apply_to_outputs_exactly(self.gated.apply_exactly(weight))

    def writer_bias(self, bias: Float[Tensor, " hidden"]) -> Float[Tensor, " hidden"]:
        """`R b`, of what writes to the stream."""
        return self.residual.apply(bias)
