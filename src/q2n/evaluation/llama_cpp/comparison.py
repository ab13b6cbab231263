r"""A tested model against a base file, per scored token.

    nll      = -log p(target)                     of the tested model
    nll_base = -(scale code + min_log_prob)       the target's, of the base model
    kl       = sum over words with log p_base > -16 of p_base (log p_base - log p)
    same_top = both models have the same first choice (the lowest index of equals)
    dp       = p(target) - p_base(target)

The words that are left out, and the 16 bits, make kl slightly wrong and at times negative; p_base
is not renormalised. float32 as in llama.cpp, sums over words in float64.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Self

import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from q2n.errors import InputError, NumericalError
from q2n.evaluation.llama_cpp.base_file import WRITE_ANOTHER, BaseFile
from q2n.evaluation.llama_cpp.records import decode, log_sum_exp
from q2n.evaluation.llama_cpp.scored_logits import ChunkLogits, Pieces, scored_logits, targets
from q2n.evaluation.per_token import PerToken
from q2n.linalg.finite import all_finite

LEAST = -16.0
"""Words with a lower log probability in the base model do not count."""

ROUNDING = 1e-3
"""By which probabilities of 16-bit codes may miss 1: each by a factor of at most exp(1.3e-4)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoredTokens:
    """One entry a scored token, chunk after chunk, on the CPU. Natural logarithms."""

    nll: Float32[Tensor, " tokens"]
    nll_base: Float32[Tensor, " tokens"]
    kl: Float32[Tensor, " tokens"]
    same_top: Bool[Tensor, " tokens"]
    top_base: Float32[Tensor, " tokens"]
    """The base model's highest probability."""
    mass_base: Float32[Tensor, " tokens"]
    """The base model's probability of all words that count."""

    @property
    def dp(self) -> Float32[Tensor, " tokens"]:
        """Change in the probability of the target."""
        return (-self.nll).exp() - (-self.nll_base).exp()

    def per_token(self) -> PerToken:
        """For the statistics of `fidelity.py`, whose errors are those of the windows."""
        return PerToken(
            loss=self.nll.double(),
            reference_loss=self.nll_base.double(),
            divergence=self.kl.double(),
            same_top=self.same_top,
            reference_top=self.top_base.double(),
        )

    def __len__(self) -> int:
        return len(self.nll)

    @classmethod
    def empty(cls, tokens: int) -> Self:
        """To be filled by `put`."""
        same_top = torch.zeros(tokens, dtype=torch.bool)
        numbers = {field.name: torch.zeros(tokens) for field in fields(cls)}
        return cls(**{**numbers, "same_top": same_top})

    def put(self, place: int, part: "ScoredTokens") -> None:
        """Copy the entries of some tokens to their place."""
        for field in fields(self):
            getattr(self, field.name)[place : place + len(part)] = getattr(part, field.name)


@torch.inference_mode()
def compare(
    base: BaseFile, logits: ChunkLogits, *, progress: Callable[[int], None] | None = None
) -> ScoredTokens:
    """A model beside the one of a base file, on its tokens. Beside the model's logits, one chunk
    of records is in memory: 134 MB at n_ctx 512 and 262144 words.

    Args:
        logits: of the tested model for the tokens of the file.
        progress: called after each chunk with 1.

    Raises:
        InputError: the file is damaged; as `scored_logits`.
        NumericalError: as `scored_logits`, or a divergence that is infinite.
    """
    # Filled, not joined at the end: a list of small tensors, each made between large ones, keeps
    # the allocator from using their room again: 24 MB a piece at 262144 words.
    scored, place = ScoredTokens.empty(len(base.tokens) * base.layout.scored), 0
    for index, (_, pieces) in enumerate(zip(base.tokens, logits, strict=True)):
        for part in _compare_chunk(base, index, pieces):
            scored.put(place, part)
            place += len(part)
        if progress is not None:
            progress(1)
    return scored


def _compare_chunk(base: BaseFile, index: int, pieces: Pieces) -> Iterator[ScoredTokens]:
    records, place = base.chunk(index), 0
    predicted = targets(base.layout, base.tokens[index])
    for logits in scored_logits(pieces, base.layout, index):
        rows = slice(place, place + len(logits))
        part = compare_tokens(decode(records[rows]), logits, predicted[rows])
        _require_sense(part, base, index)
        yield part
        place += len(logits)


def compare_tokens(
    log_p_base: Float32[Tensor, "tokens words"],
    logits: Float32[Tensor, "tokens words"],
    targets: Int64[Tensor, " tokens"],
) -> ScoredTokens:
    """The definitions above for a few tokens, on the device of the logits."""
    log_p_base, wanted = log_p_base.to(logits.device), targets.to(logits.device)[:, None]
    highest = logits.amax(1, keepdim=True)
    log_z = highest + log_sum_exp(logits, highest)
    counts = log_p_base > LEAST
    p_base = log_p_base.exp().mul_(counts)
    terms = (log_p_base - logits).add_(log_z).mul_(p_base).where(counts, 0)  # 0 inf is not 0
    return ScoredTokens(
        nll=(log_z - logits.gather(1, wanted))[:, 0].cpu(),
        nll_base=-log_p_base.gather(1, wanted)[:, 0].cpu(),
        kl=terms.sum(1, dtype=torch.float64).float().cpu(),
        same_top=(logits.argmax(1) == log_p_base.argmax(1)).cpu(),
        top_base=log_p_base.amax(1).exp().cpu(),
        mass_base=p_base.sum(1).cpu(),
    )


def _require_sense(part: ScoredTokens, base: BaseFile, index: int) -> None:
    where = f"chunk {index + 1} of {base.layout.n_chunks}"
    lost = base.layout.n_vocab * math.exp(LEAST) + ROUNDING
    if not bool(((part.mass_base - 1).abs() <= lost).all()):
        raise InputError(
            f"the probabilities in {where} of {base.path} do not sum to 1: the file is damaged; "
            + WRITE_ANOTHER
        )
    if not all_finite(part.nll + part.kl):
        raise NumericalError(
            f"the model gives probability 0 to a word that the base model expects or the text has, "
            f"in {where}: look for infinite values in its head, or try --dtype float32"
        )
