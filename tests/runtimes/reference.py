"""What transformers makes of a checkpoint that our own reader has dequantized."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

from q2n.data.sotu import addresses
from q2n.data.tokenizer import load_tokenizer
from q2n.formats.load import load_model

PROMPT, NEW, TOKENS = 8, 16, 64


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Of one model and one text."""

    loss: float
    """Nats a token."""
    top: list[int]
    """The most probable next token at each place of the text."""
    sure: list[bool]
    """Whether that is no near-tie."""
    greedy: list[int]
    """The continuation of the beginning."""
    greedy_sure: list[bool]

    def certain(self) -> int:
        """Greedy tokens before the first near-tie, where texts may go different ways."""
        return self.greedy_sure.index(False) if False in self.greedy_sure else len(self.greedy)


def reference(folder: Path, tokens: list[int], dtype: torch.dtype = torch.float32) -> Reference:
    """Loss of `tokens`, and NEW greedy tokens after the first PROMPT of them, computed in `dtype`.

    A place is sure if the same token leads there in float32 and in `dtype`, in both by more than
    eight spacings of a number of `dtype` at that logit. Elsewhere two computations in one dtype
    may differ: the sums of a block are rounded in another order.
    """
    models = [load_model(folder, x) for x in dict.fromkeys((dtype, torch.float32))]
    ids = torch.tensor([tokens])
    with torch.no_grad():
        found = ids[:, :PROMPT]
        for _ in range(NEW):
            found = torch.cat([found, models[0](found).logits[0, -1:].argmax(1)[None]], dim=1)
        scored = [model(ids[:, :-1]).logits[0] for model in models]
        continued = [model(found[:, :-1]).logits[0, PROMPT - 1 :] for model in models]
    return Reference(
        loss=cross_entropy(scored[0].double(), ids[0, 1:]).item(),
        top=scored[0].argmax(1).tolist(),
        sure=_sure(scored),
        greedy=found[0, PROMPT:].tolist(),
        greedy_sure=_sure(continued),
    )


def _sure(logits: list[torch.Tensor]) -> list[bool]:
    """Per row, of the same logits in several dtypes, whose first one counts."""
    leads = torch.ones(len(logits[0]), dtype=torch.bool)
    first, eps = logits[0].argmax(1, keepdim=True), torch.finfo(logits[0].dtype).eps
    for values in (x.float() for x in logits):
        best = values.gather(1, first)[:, 0]
        second = values.scatter(1, first, -torch.inf).max(1).values
        spacing = 2.0 ** (torch.frexp(best.abs()).exponent - 1) * eps
        leads &= best - second > 8 * spacing
    return leads.tolist()


def sample(model: Path) -> list[int]:
    """Tokens from the middle of a text."""
    text = addresses("test")[0][1000:3000]
    return load_tokenizer(model)(text)["input_ids"][:TOKENS]
