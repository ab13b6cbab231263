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
    greedy: list[int]
    gaps: list[float]
    """Logit of each greedy token less that of the second, in spacings of the dtype there."""

    def certain(self) -> int:
        """Greedy tokens before the first near-tie. Two computations in one dtype differ by
        some spacings of a logit: where the first two are no farther apart than 4, either may be
        the greater, and the texts go different ways."""
        ties = [step for step, gap in enumerate(self.gaps) if gap <= 4]
        return ties[0] if ties else len(self.gaps)


def reference(folder: Path, tokens: list[int], dtype: torch.dtype = torch.float32) -> Reference:
    """Loss of `tokens`, and NEW greedy tokens after the first PROMPT of them."""
    model = load_model(folder, dtype)
    ids = torch.tensor([tokens])
    with torch.no_grad():
        logits = model(ids[:, :-1]).logits[0].double()
        found, gaps = ids[:, :PROMPT], []
        for _ in range(NEW):
            best = model(found).logits[0, -1].float().topk(2)
            spacing = 2.0 ** torch.frexp(best.values[0]).exponent * torch.finfo(dtype).eps / 2
            gaps.append(float((best.values[0] - best.values[1]) / spacing))
            found = torch.cat([found, best.indices[:1, None]], dim=1)
    return Reference(
        loss=cross_entropy(logits, ids[0, 1:]).item(), greedy=found[0, PROMPT:].tolist(), gaps=gaps
    )


def sample(model: Path) -> list[int]:
    """Tokens from the middle of a text."""
    text = addresses("test")[0][1000:3000]
    return load_tokenizer(model)(text)["input_ids"][:TOKENS]
