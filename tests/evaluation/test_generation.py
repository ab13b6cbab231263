"""The generation check: its measures by hand, and what a model writes."""

import random

import pytest
import torch
from tiny import save_tiny, tiny_model, tiny_tokenizer
from tokenizers.processors import TemplateProcessing

import q2n
from q2n.errors import InputError, NumericalError
from q2n.evaluation.generation import (
    NEW_TOKENS,
    PROMPTS,
    distinct,
    ends_in_loop,
    generation,
    repetition,
)


@pytest.fixture(autouse=True)
def few_prompts(monkeypatch):
    """Each text takes 64 steps."""
    monkeypatch.setattr("q2n.evaluation.generation.PROMPTS", PROMPTS[:2])


def test_repetition_is_the_share_of_4_grams_that_came_before():
    assert repetition(range(64)) == 0
    assert repetition([7] * 64) == pytest.approx(60 / 61)
    assert repetition([*range(8), *range(8)]) == pytest.approx(5 / 13)
    assert repetition([1, 2, 3]) == repetition([]) == 0


def test_distinct_counts_n_grams_of_all_texts_together():
    assert distinct([[1, 2, 1], [2, 1]], 1) == 2 / 5
    assert distinct([[1, 2, 1], [2, 1]], 2) == 2 / 3  # none across two texts
    assert distinct([[1]], 2) == 0


@pytest.mark.parametrize(
    ("tokens", "loops"),
    [
        ([*range(50), *([3] * 12)], True),
        ([*range(50), *([3] * 11)], False),
        ([*range(40), *([1, 2, 3, 4, 5] * 3)], True),
        ([*range(40), *([1, 2, 3, 4, 5] * 3)[:-1]], False),
        ([*range(40), *([1, 2, 3, 4, 5] * 4)[:-1]], True),  # the piece is cut at the end
        ([*([1, 2] * 20), 99], False),  # it came out of the loop
        (list(range(21)) * 3, True),
        ([1] * 5, False),
        ([], False),
    ],
)
def test_a_loop_is_a_piece_three_times_at_the_end(tokens, loops):
    assert ends_in_loop(tokens) == loops


def test_loops_of_random_texts_as_counted_by_strings():
    """Few different tokens, so that there are many loops; each token is one character."""
    draw = random.Random(0)
    found = 0
    for _ in range(3000):
        text = "".join(draw.choices("ab", k=draw.randint(0, 14)))
        text += draw.choice(["", "ab", "abb", "a"]) * draw.randint(0, 16)
        tails = [text[-max(12, 3 * p) :] for p in range(1, len(text) // 3 + 1)]
        by_strings = any(
            len(tail) >= 12 and (tail[: p + 1][:p] * len(tail)).startswith(tail)
            for p, tail in enumerate(tails, 1)
        )
        assert ends_in_loop([ord(x) for x in text]) == by_strings
        found += by_strings
    assert 500 < found < 2500


def test_texts_are_those_of_greedy_steps_without_a_cache():
    model, tokenizer = tiny_model(max_position_embeddings=256), tiny_tokenizer()
    model.generation_config.eos_token_id = None
    result = generation(model, tokenizer)
    assert len(result.texts) == 2 and result.tokens == NEW_TOKENS
    assert len(set(PROMPTS)) == 20
    tokens = tokenizer(PROMPTS[0], return_tensors="pt").input_ids
    start = tokens.shape[1]
    with torch.no_grad():
        for _ in range(NEW_TOKENS):
            following = model(tokens, use_cache=False).logits[:, -1:].argmax(-1)
            tokens = torch.cat([tokens, following], 1)
    assert result.texts[0] == tokenizer.decode(tokens[0, start:])


def test_a_text_ends_where_the_model_ends_it():
    model, tokenizer = tiny_model(max_position_embeddings=256), tiny_tokenizer()
    model.generation_config.eos_token_id = None
    free = generation(model, tokenizer)
    first = tokenizer(PROMPTS[0], return_tensors="pt").input_ids
    with torch.no_grad():
        model.generation_config.eos_token_id = int(model(first).logits[0, -1].argmax())
    ended = generation(model, tokenizer)
    assert ended.texts[0] == "" != free.texts[0]
    assert ended.tokens < free.tokens


def test_settings_of_the_checkpoint_change_nothing():
    model, tokenizer = tiny_model(max_position_embeddings=256), tiny_tokenizer()
    plain = generation(model, tokenizer).texts
    model.generation_config.update(do_sample=True, temperature=2.0, repetition_penalty=1.5)
    assert generation(model, tokenizer).texts == plain


def test_prompts_begin_with_the_token_that_the_tokenizer_adds(monkeypatch):
    model, tokenizer, seen = tiny_model(max_position_embeddings=256), tiny_tokenizer(), []
    template = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.backend_tokenizer.post_processor = template
    generate = model.generate
    monkeypatch.setattr(model, "generate", lambda x, **o: seen.append(x) or generate(x, **o))
    generation(model, tokenizer)
    assert all((x[0] == 1).sum() == 1 and x[0, 0] == 1 for x in seen)


def test_nan_and_a_model_that_does_not_write_are_named(monkeypatch):
    model, tokenizer = tiny_model(max_position_embeddings=256), tiny_tokenizer()
    with pytest.raises(InputError, match="give tokenizer="):
        q2n.evaluate_generation(model)

    def broken(*arguments, **options):
        raise RuntimeError("no such kernel")

    with monkeypatch.context() as patch:
        patch.setattr(model, "generate", broken)
        with pytest.raises(InputError, match="does not write .*no such kernel"):
            generation(model, tokenizer)
    with torch.no_grad():
        model.lm_head.weight[5] = float("nan")
    with pytest.raises(NumericalError, match="logits after 'The old lighthouse.*are NaN"):
        generation(model, tokenizer)


def test_infinite_logits_are_named():
    """Of a head in float16 they overflow; one that is minus infinity bars a word, which is fine."""
    model, tokenizer = tiny_model(max_position_embeddings=256), tiny_tokenizer()
    forward = model.forward
    for number in (float("inf"), -float("inf")):

        def broken(*arguments, number=number, **options):
            found = forward(*arguments, **options)
            found.logits[..., 5] = number
            return found

        model.forward = broken
        if number < 0:
            assert generation(model, tokenizer).tokens > 0
        else:
            with pytest.raises(NumericalError, match="logits after 'The old lighthouse.*infinite"):
                generation(model, tokenizer)


def test_what_a_checkpoint_forbids_when_it_writes_does_not_count():
    model, tokenizer = tiny_model(max_position_embeddings=256), tiny_tokenizer()
    with torch.no_grad():
        model.model.norm.weight.zero_()  # the first token again and again
    model.generation_config.no_repeat_ngram_size = 3
    model.generation_config.repetition_penalty = 1.5
    assert generation(model, tokenizer).loops == 1


def test_native_checkpoints_write(tmp_path):
    save_tiny(tmp_path / "model", max_position_embeddings=256)
    (tmp_path / "text.txt").write_text("the law of the null space " * 100)
    settings = {"method": "rtn", "bits": 2, "windows": 2, "length": 16, "format": "native"}
    q2n.quantize(
        tmp_path / "model", tmp_path / "out", corpus=str(tmp_path / "text.txt"), **settings
    )
    result = q2n.evaluate_generation(tmp_path / "out")
    assert 0 <= result.repetition < 1 and all(0 < x <= 1 for x in result.distinct)
