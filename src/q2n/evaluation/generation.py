"""Does a model still write? Greedy text from fixed prompts, and how much of it repeats.

At low bits a model can give each next token of a human text a fair probability and still fall into
a loop when it writes by itself. Measured on the tokens that it writes (the prompt does not count),
greedily, so that nothing is drawn at random:

- **repetition**: the share of 4-grams of a text that occurred before in the same text
  (seq-rep-4 of Welleck et al. 2019, arXiv:1908.04319), mean over texts.
- **loops**: the share of texts that end in a loop: their last tokens are one piece three times or
  more, and at least `LOOP` tokens.
- **distinct-n**: different n-grams divided by all n-grams, over all texts together (Li et al. 2016,
  arXiv:1510.03055), for n = 1 to 4.

A broken model shows at either end: in loops (much repetition, low distinct-n), or, when it is worse
still, in words without order, of which none repeats (distinct-n near 1). What counts is how far the
figures are from those of the original, from the same prompts and the same number of tokens.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from q2n.errors import InputError, NumericalError, reason_of

PROMPTS = (
    "The old lighthouse keeper climbed the stairs and",
    "To bake a loaf of bread at home, you first need",
    "The most important cause of the war was",
    "Dear Sir or Madam, I am writing to",
    "Once upon a time, in a village by the sea,",
    "Water boils at a lower temperature in the mountains because",
    "The city council decided on Tuesday that",
    "My grandmother always used to say that",
    "In order to train for a marathon,",
    "The heart pumps blood through the body, and the lungs",
    "She opened the letter, read the first line, and",
    "A good teacher is someone who",
    "The train to Edinburgh leaves at nine, so",
    "Computers store information as",
    "When winter comes, many birds",
    "The recipe calls for two eggs, a cup of sugar and",
    "In the eighteenth century, most people lived",
    "If you want to learn a new language, the best way is",
    "The scientists were surprised to find that",
    "He looked at the chess board for a long time before",
)
"""What every text begins with."""

NEW_TOKENS = 64
"""Written after each prompt at most; a text ends before where the model ends it."""

LOOP = 12
"""Tokens at the end of a text that must be a loop."""


@dataclass(frozen=True, kw_only=True)
class GenerationResult:
    """What a model wrote and how much of it repeats; every field is a JSON value."""

    repetition: float
    loops: float
    distinct: tuple[float, ...]
    """distinct-1 to distinct-4."""
    tokens: float
    """Mean length of a text."""
    texts: tuple[str, ...]
    """Without their prompts, in the order of `PROMPTS`."""
    seconds: float


def generation(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    progress: Callable[[], object] = lambda: None,
) -> GenerationResult:
    """Let a model write after each of `PROMPTS`, with a BOS token where its tokenizer adds one.

    Args:
        progress: called after each text.

    Raises:
        InputError: the model does not run.
        NumericalError: its logits are NaN or infinite.
    """
    start = time.perf_counter()
    written = []
    for prompt in PROMPTS:
        written.append(_continuation(model, tokenizer, prompt))
        progress()
    return GenerationResult(
        repetition=sum(map(repetition, written)) / len(written),
        loops=sum(map(ends_in_loop, written)) / len(written),
        distinct=tuple(distinct(written, n) for n in (1, 2, 3, 4)),
        tokens=sum(map(len, written)) / len(written),
        texts=tuple(str(tokenizer.decode(tokens)) for tokens in written),
        seconds=time.perf_counter() - start,
    )


@torch.inference_mode()
def _continuation(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str
) -> list[int]:
    """The tokens that a model writes, without the one that ends the text."""
    tokens = tokenizer(prompt, return_tensors="pt").input_ids.to(model.device)
    try:
        out = model.generate(  # type: ignore[operator]
            tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            num_beams=1,
            repetition_penalty=1.0,
            no_repeat_ngram_size=0,
            use_cache=True,
            pad_token_id=_padding(model, tokenizer),
            output_logits=True,
            return_dict_in_generate=True,
        )
    except Exception as cause:  # of any architecture's own code
        raise InputError(f"the model does not write ({reason_of(cause)})") from cause
    if not all(bool(logits.max().isfinite()) for logits in out.logits):  # NaN if any is
        raise NumericalError(
            f"the logits after {prompt!r} are NaN or infinite: the model's weights or activations "
            "are not finite; try --dtype float32"
        )
    written = out.sequences[0, tokens.shape[1] :].tolist()
    return written[:-1] if written and written[-1] in _ends(model) else written


def _padding(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """Any token: nothing is padded, but `generate` asks for one."""
    known = (tokenizer.pad_token_id, tokenizer.eos_token_id, *_ends(model), 0)
    return next(token for token in known if isinstance(token, int))


def _ends(model: PreTrainedModel) -> tuple[int, ...]:
    settings = model.generation_config
    end = None if settings is None else settings.eos_token_id
    return tuple(end) if isinstance(end, list | tuple) else () if end is None else (end,)


def n_grams(tokens: Sequence[int], n: int) -> list[tuple[int, ...]]:
    """All runs of n tokens."""
    return [tuple(tokens[at : at + n]) for at in range(len(tokens) - n + 1)]


def repetition(tokens: Sequence[int]) -> float:
    """Share of 4-grams that occurred before in the same text; 0 of a text that has none."""
    grams = n_grams(tokens, 4)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def distinct(texts: Sequence[Sequence[int]], n: int) -> float:
    """Different n-grams of all texts divided by all of them; 0 where there are none."""
    grams = [gram for tokens in texts for gram in n_grams(tokens, n)]
    return len(set(grams)) / len(grams) if grams else 0.0


def ends_in_loop(tokens: Sequence[int]) -> bool:
    """Whether the last `LOOP` tokens or more are one piece at least three times."""
    return any(
        _is_periodic(tokens[-max(LOOP, 3 * period) :], period)
        for period in range(1, len(tokens) // 3 + 1)
        if len(tokens) >= LOOP
    )


def _is_periodic(tokens: Sequence[int], period: int) -> bool:
    return all(a == b for a, b in zip(tokens, tokens[period:], strict=False))
