r"""What is computed from logits, token by token: loss and divergence from a reference.

With a and b the logits of the reference and of the model under test, each less its highest one,
and Z_a = sum_v exp a_v, the divergence in nats is

    KL(p_ref | p) = sum_v p_v (log p_v - log q_v)
                  = sum_v exp(a_v) (a_v - b_v) / Z_a + log Z_b - log Z_a

over the whole vocabulary. In this form no large numbers cancel, and equal logits give exactly 0.

A processor takes a few tokens at a time, so that what is computed on the way stays in its cache and
in memory that the process has already; a GPU takes all of them.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

Logits = Float[Tensor, "tokens words"]
Numbers = Float[Tensor, " tokens"]
SLICE = 2**20
"""Logits of one model that a processor takes at once: 4 MB in float32."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PerToken:
    """One entry for each scored token; on the CPU, losses and divergences in float64."""

    loss: Numbers
    """-log p of the token, in nats, of the model under test."""
    reference_loss: Numbers
    divergence: Numbers
    """KL(p_ref | p) of the next-token distributions, in nats."""
    same_top: Bool[Tensor, " tokens"]
    """Whether both models find the same token the most probable."""
    reference_top: Numbers
    """The reference's highest probability."""

    @classmethod
    def joined(cls, parts: "list[PerToken]") -> "PerToken":
        """One after the other."""
        names = cls.__dataclass_fields__
        return cls(**{name: torch.cat([getattr(part, name) for part in parts]) for name in names})


def in_parts(most: int, words: int, *rows: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Rows of tokens, so few at a time that there are at most so many logits; one at least."""
    return zip(*(x.split(max(1, most // words)) for x in rows), strict=True)


def losses(logits: Logits, targets: Int64[Tensor, " tokens"]) -> Numbers:
    """-log p of each target, in nats; the numbers that `compared` gives."""
    return torch.cat([_losses(*part) for part in _slices(logits, targets)])


def _losses(logits: Logits, targets: Int64[Tensor, " tokens"]) -> Numbers:
    shifted, _ = _less_highest(logits)
    at_target = shifted.gather(1, targets.to(shifted.device).unsqueeze(1))
    return (_sum(shifted.exp_()).log() - at_target.cpu()).squeeze(1)


def compared(logits: Logits, reference: Logits, targets: Int64[Tensor, " tokens"]) -> PerToken:
    """Two models' logits for the same tokens; computed in float32 on the device of `logits`."""
    return PerToken.joined([_compared(*part) for part in _slices(logits, reference, targets)])


def _compared(logits: Logits, reference: Logits, targets: Int64[Tensor, " tokens"]) -> PerToken:
    (a, word_a), (b, word_b) = _less_highest(reference.to(logits.device)), _less_highest(logits)
    targets = targets.to(a.device).unsqueeze(1)
    at_target_a, at_target_b = a.gather(1, targets).cpu(), b.gather(1, targets).cpu()
    difference = a - b
    exp_a = a.exp_()
    z_a, z_b = _sum(exp_a), _sum(b.exp_())
    columns = {
        "loss": z_b.log() - at_target_b,
        "reference_loss": z_a.log() - at_target_a,
        "divergence": _sum(difference.mul_(exp_a)) / z_a + z_b.log() - z_a.log(),
        "same_top": (word_a == word_b).cpu(),
        "reference_top": 1 / z_a,
    }
    return PerToken(**{name: column.squeeze(1) for name, column in columns.items()})


def _slices(logits: Logits, *rows: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """So few tokens at a time that their logits fit into `SLICE`; all of them on a GPU."""
    on_cpu = logits.device.type == "cpu"
    return in_parts(SLICE if on_cpu else logits.numel(), logits.shape[1], logits, *rows)


def _less_highest(logits: Logits) -> tuple[Logits, Int64[Tensor, "tokens 1"]]:
    """Logits less the highest of each token, a copy in float32, and which word has that."""
    logits = logits.float()
    top, word = logits.max(1, keepdim=True)
    return logits - top, word


def _sum(values: Logits) -> Float[Tensor, "tokens 1"]:
    """Over words; float64, on the CPU, for not every device has it."""
    return values.sum(1, keepdim=True).cpu().double()
