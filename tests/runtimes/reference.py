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
    """Loss of `tokens`, and NEW greedy tokens after the first PROMPT of them."""
    model = load_model(folder, dtype)
    ids = torch.tensor([tokens])
    with torch.no_grad():
        logits = model(ids[:, :-1]).logits[0]
        found, sure = ids[:, :PROMPT], []
        for _ in range(NEW):
            last = model(found).logits[0, -1:]
            sure += no_near_tie(last)
            found = torch.cat([found, last.argmax(1)[None]], dim=1)
    return Reference(
        loss=cross_entropy(logits.double(), ids[0, 1:]).item(),
        top=logits.argmax(1).tolist(),
        sure=no_near_tie(logits),
        greedy=found[0, PROMPT:].tolist(),
        greedy_sure=sure,
    )


def no_near_tie(logits: torch.Tensor) -> list[bool]:
    """Per row, whether the greatest logit is more than four spacings of its dtype above the
    second: two computations in one dtype differ by some spacings."""
    best = logits.float().topk(2, dim=1).values
    spacing = 2.0 ** (torch.frexp(best[:, 0]).exponent - 1) * torch.finfo(logits.dtype).eps
    return (best[:, 0] - best[:, 1] > 4 * spacing).tolist()


def sample(model: Path) -> list[int]:
    """Tokens from the middle of a text."""
    text = addresses("test")[0][1000:3000]
    return load_tokenizer(model)(text)["input_ids"][:TOKENS]
