r"""Restorative LoRA, the preprocessing of PTQ1.61 (Zhao et al. 2025).

A quantization to one or two bits keeps little more than a row's scale, and pretrained weights
do not suit that. So a model is quantized once; the dense weights of the result, W, which do, are
frozen and repaired by a low-rank update that is trained as a language model is,

    W + (alpha / rank) B A,    loss = mean over tokens of -log p(next token),

and W with the update merged is the model to quantize in the second round.

As published: rank 64, alpha 16, dropout 0.1, on every linear of a block but the attention's
output; AdamW without decay, one window a step and two steps an update, rate 1e-4 along a cosine
after a warm-up over 5 % of the updates; 20000 windows of 2048 tokens.
"""

import math
import warnings
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.optim import AdamW
from transformers import PreTrainedModel

from q2n.errors import InputError, NumericalError
from q2n.option_types import Count, Patterns, Positive, Range, Seed, check_fields
from q2n.patterns import listed, matches
from q2n.preprocess.resume_file import ResumeFile
from q2n.refit.descent import in_fast_dtype
from q2n.refit.tuner import shuffled

WARM_UP = 0.05
CLIPPED_NORM = 1.0
"""Of the gradient: what the trainer that the authors call does."""


@dataclass(frozen=True, kw_only=True)
class RestorativeLora:
    """How the low-rank update is trained."""

    steps: Count = 1000
    """Windows that are seen, one a step."""
    accumulation: Count = 2
    """Steps whose gradients make one update."""
    rank: Count = 64
    """Of the update of each linear."""
    alpha: Count = 16
    """The update is weighted by alpha / rank."""
    dropout: Annotated[float, Range(low=0, high=1, open_high=True)] = 0.1
    """Share of a linear's inputs that its update does not see in a step."""
    learning_rate: Positive = 1e-4
    """The largest one."""
    leave: Patterns = ("o_proj",)
    """Linears without an update: shell patterns of their names."""
    seed: Seed = 0
    """Of the order of windows, the first A and the dropout."""
    save_every: Count = 100
    """Steps after which what an interrupted training goes on with is written."""

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def updates(self) -> int:
        """How often the weights change."""
        return -(-self.steps // self.accumulation)

    def rate(self, update: int) -> float:
        """The learning rate of an update: a line up, then half a cosine down to 0."""
        warm = math.ceil(WARM_UP * self.updates)
        if update < warm:
            return self.learning_rate * (update + 1) / warm
        share = (update - warm) / max(1, self.updates - warm)
        return self.learning_rate * (1 + math.cos(math.pi * share)) / 2

    def train(
        self,
        model: PreTrainedModel,
        linears: Collection[str],
        tokens: Int[Tensor, "windows length"],
        kept: ResumeFile,
    ) -> Iterator[float]:
        """Train the update and merge it into `model`, which is changed.

        Args:
            linears: names of those that may have an update.
            kept: what an interrupted training left, and where this one leaves it.

        Yields:
            The loss of each step that is taken now; the merge comes after the last one.

        Raises:
            InputError: a pattern of `leave` matches no linear, or none is left to train.
            NumericalError: the loss is not finite.
            ResumeError: what an interrupted training left is damaged.
        """
        from peft import LoraConfig, get_peft_model

        self._require_matches(linears)
        trained = [name for name in linears if not any(matches(x, name) for x in self.leave)]
        if not trained:
            raise InputError(f"no linear layer is left to train: leave is {' '.join(self.leave)}")
        torch.manual_seed(self.seed)
        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=trained,
        )
        with warnings.catch_warnings():  # peft asks transformers by a name that it will drop
            warnings.simplefilter("ignore", FutureWarning)
            adapted = get_peft_model(model, config).train()
        weights = {name: x for name, x in adapted.named_parameters() if x.requires_grad}
        optimizer = AdamW(weights.values(), weight_decay=0.0)
        first = kept.read_into(weights, optimizer)
        order = shuffled(len(tokens), self.steps, self.seed)
        for step in range(first, self.steps):
            window = tokens[order[step]].unsqueeze(0).to(model.device)
            yield self._step(adapted, optimizer, list(weights.values()), window, step)
            if self._is_update(step) and (step + 1) % self.save_every < self.accumulation:
                kept.write(weights, optimizer, step + 1)
        adapted.eval().merge_and_unload()

    def _require_matches(self, linears: Collection[str]) -> None:
        """Refuse patterns of no layer, but for the published one: not every architecture has such a
        layer."""
        for pattern in self.leave if self.leave != RestorativeLora.leave else ():
            if not any(matches(pattern, name) for name in linears):
                raise InputError(
                    f"leave {pattern!r} matches no linear layer; their names are "
                    f"{listed(list(linears))}"
                )

    def _step(
        self,
        adapted: nn.Module,
        optimizer: AdamW,
        weights: list[Tensor],
        window: Int[Tensor, "one length"],
        step: int,
    ) -> float:
        """One window; returns its loss."""
        torch.manual_seed(self.seed + 1 + step)  # of the dropout: the same when it is resumed
        with torch.enable_grad(), in_fast_dtype(adapted):
            loss: Float[Tensor, ""] = adapted(input_ids=window, labels=window).loss
            (loss / self.accumulation).backward()
        value = float(loss.detach())
        if not math.isfinite(value):
            raise NumericalError(
                f"the loss of step {step} is {value}; use a smaller learning rate, or a wider dtype"
            )
        if self._is_update(step):
            nn.utils.clip_grad_norm_(weights, CLIPPED_NORM)
            for group in optimizer.param_groups:
                group["lr"] = self.rate(step // self.accumulation)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return value

    def _is_update(self, step: int) -> bool:
        return (step + 1) % self.accumulation == 0 or step + 1 == self.steps
