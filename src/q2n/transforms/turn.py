r"""A further rotation of a rotated decoder, which may be learned (SpinQuant, Liu et al. 2024).

Letters: `Q` turns the residual stream, `N` the values of each head, one for each block; both
orthogonal. The decoder is one of transforms/decoder.py, whose norms have no weights left, so that

    the stream carries       Q h        embeddings, o and down:  Q W, Q b
    what reads it            W Q^T      q, k, v, gate, up and the head
    a head's values are      N v        v:  N W, N b;  o, whose input has N in it:  W (I (x) N)^T

Nothing is left to do at runtime: N meets o's weight alone, whether heads were mixed before or not,
for (A (x) I) and (I (x) N) commute. With R and M of the first rotation the model is rotated by Q R
and N M. The products are differentiable in Q and N.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Turn:
    """Q and N of a whole decoder."""

    stream: Float[Tensor, "hidden hidden"]
    """Q."""
    heads: Float[Tensor, "blocks size size"]
    """N, block by block."""

    def reader(self, weight: Float[Tensor, "out hidden"]) -> Float[Tensor, "out hidden"]:
        """`W Q^T`, of what reads the stream; `Q x` for each row x, of embeddings."""
        return weight @ self.stream.to(weight).mT

    def unread(self, states: Float[Tensor, "tokens hidden"]) -> Float[Tensor, "tokens hidden"]:
        """`Q^T h` for each row h: the stream as it was."""
        return states @ self.stream.to(states)

    def writer(self, weight: Float[Tensor, "hidden in"]) -> Float[Tensor, "hidden in"]:
        """`Q W`, of what writes to the stream."""
        return self.stream.to(weight) @ weight

    def writer_bias(self, bias: Float[Tensor, " hidden"]) -> Float[Tensor, " hidden"]:
        """`Q b`."""
        return self.stream.to(bias) @ bias

    def value(self, block: int, weight: Float[Tensor, "out hidden"]) -> Float[Tensor, "out hidden"]:
        """`N W_v Q^T` of each head."""
        head = self.heads[block].to(weight)
        rows = self.reader(weight).unflatten(0, (-1, len(head)))
        return (head @ rows).flatten(0, 1)

    def value_bias(self, block: int, bias: Float[Tensor, " out"]) -> Float[Tensor, " out"]:
        """`N b_v` of each head."""
        head = self.heads[block].to(bias)
        return (bias.unflatten(0, (-1, len(head))) @ head.mT).flatten()

    def attention_output(
        self, block: int, weight: Float[Tensor, "hidden heads"]
    ) -> Float[Tensor, "hidden heads"]:
        """`Q W_o (I (x) N)^T`."""
        head = self.heads[block].to(weight)
        return self.writer((weight.unflatten(1, (-1, len(head))) @ head.mT).flatten(1))

    @classmethod
    def none(cls, hidden: int, blocks: int, size: int) -> "Turn":
        """The identity, in float32."""
        return cls(torch.eye(hidden), torch.eye(size).repeat(blocks, 1, 1))
