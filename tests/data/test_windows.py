"""Token windows: the drawing rule, the cutting rule, the hash, and what is refused."""

import logging
import random

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import LlamaConfig, PreTrainedTokenizerFast, Qwen2Config

from q2n.data.corpora import Corpus, Joined
from q2n.data.tokenizer import load_tokenizer
from q2n.data.windows import TokenWindows, calibration_windows, evaluation_windows
from q2n.errors import InputError

WORDS = 60


def number_tokenizer(bos=False):
    """Word "i" is token i, so that a window shows where it was cut."""
    vocabulary = {str(i): i for i in range(WORDS)} | {"<unk>": WORDS, "<s>": WORDS + 1}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", WORDS + 1)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", model_max_length=8
    )


def numbers(count, start=0):
    return " ".join(str(i % WORDS) for i in range(start, start + count))


def corpus(*documents, by_document=False, **options):
    drawn = documents if by_document else None
    return Corpus(label="numbers", parts=Joined(documents), documents=drawn, **options)


def test_calibration_starts_are_pythons_randint():
    windows = calibration_windows(
        corpus(numbers(50)), number_tokenizer(), count=20, length=8, seed=3
    )
    stream = random.Random(3)
    starts = [stream.randint(0, 50 - 8 - 1) for _ in range(20)]
    assert windows.tokens.tolist() == [list(range(start, start + 8)) for start in starts]
    assert windows.tokens.dtype == torch.int64
    assert (len(windows), windows.length, windows.label) == (20, 8, "numbers")


def test_calibration_joins_documents():
    joined = calibration_windows(
        corpus("1 2", "3 4 5"), number_tokenizer(), count=9, length=4, seed=0
    )
    assert {tuple(window) for window in joined.tokens.tolist()} <= {(1, 2, 3, 4), (2, 3, 4, 5)}


def test_draws_by_document_follow_one_random_stream():
    lengths = [8, 9, 30, 3, 8, 12]  # of 8 and shorter none may be used
    documents = [numbers(n, start=7 * i) for i, n in enumerate(lengths)]
    windows = calibration_windows(
        corpus(*documents, by_document=True), number_tokenizer(), count=25, length=8, seed=5
    )
    stream, expected = random.Random(5), []
    for _ in range(25):
        while True:
            place = stream.randint(0, len(lengths) - 1)
            if lengths[place] > 8:
                break
        start = stream.randint(0, lengths[place] - 8 - 1)
        expected.append([(7 * place + start + i) % WORDS for i in range(8)])
    assert windows.tokens.tolist() == expected


def test_corpus_of_short_documents_is_refused():
    short = corpus(numbers(8), numbers(5), by_document=True)
    with pytest.raises(InputError, match="longest with 8 tokens.*more than 8"):
        calibration_windows(short, number_tokenizer(), count=1, length=8, seed=0)
    with pytest.raises(InputError, match="no document"):
        calibration_windows(corpus(by_document=True), number_tokenizer(), count=1, length=8, seed=0)


def test_evaluation_windows_are_adjacent_and_drop_the_tail():
    windows = evaluation_windows(corpus(numbers(31)), number_tokenizer(), length=8)
    assert windows.tokens.tolist() == [list(range(8 * w, 8 * w + 8)) for w in range(3)]
    whole = evaluation_windows(corpus(numbers(8)), number_tokenizer(), length=8)
    assert whole.tokens.shape == (1, 8)


def test_evaluation_limits():
    many = corpus(numbers(40), most_windows=3)
    assert len(evaluation_windows(many, number_tokenizer(), length=8)) == 3
    assert len(evaluation_windows(many, number_tokenizer(), length=8, limit=2)) == 2
    assert len(evaluation_windows(many, number_tokenizer(), length=8, limit=9)) == 3


def test_evaluation_stride_overlaps():
    windows = evaluation_windows(corpus(numbers(21)), number_tokenizer(), length=8, stride=3)
    assert windows.tokens[:, 0].tolist() == [0, 3, 6, 9, 12]


def test_bos_comes_once_per_text_not_per_window():
    bos = WORDS + 1
    windows = evaluation_windows(corpus(numbers(30)), number_tokenizer(bos=True), length=8)
    assert windows.tokens[0].tolist() == [bos, 0, 1, 2, 3, 4, 5, 6]
    assert (windows.tokens == bos).sum() == 1


def test_long_text_brings_no_warning(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    tokenizer = number_tokenizer()
    evaluation_windows(corpus(numbers(50)), tokenizer, length=8)
    assert not caplog.records
    tokenizer(numbers(50))  # what is kept silent above
    assert "longer than" in caplog.text


@pytest.mark.parametrize("text", ["", numbers(7)])
def test_short_text_is_refused_with_the_counts(text):
    found = len(text.split())
    with pytest.raises(InputError, match=f"'numbers' is too short: {found} tokens.*more than 7"):
        evaluation_windows(corpus(text), number_tokenizer(), length=8)
    with pytest.raises(InputError, match=f"{found} tokens.*more than 8"):
        calibration_windows(corpus(text), number_tokenizer(), count=1, length=8, seed=0)


@pytest.mark.parametrize(
    "options", [{"length": 1}, {"length": 8, "limit": 0}, {"length": 8, "stride": 9}]
)
def test_senseless_evaluation_options_are_refused(options):
    with pytest.raises(InputError):
        evaluation_windows(corpus(numbers(50)), number_tokenizer(), **options)


def test_hash_is_of_shape_and_content():
    tokens = torch.arange(12)

    def digest(windows):
        return TokenWindows(tokens=windows, label="x").sha256

    assert digest(tokens.view(3, 4)) == digest(tokens.view(3, 4).clone())
    assert digest(tokens.view(4, 3).T) == digest(tokens.view(4, 3).T.contiguous())
    assert digest(tokens.view(3, 4)) != digest(tokens.view(4, 3))
    assert digest(tokens.view(3, 4)) != digest(tokens.flip(0).view(3, 4))


def test_same_seed_same_hash_other_seed_other_hash():
    def digest(seed):
        text = corpus(numbers(200))
        return calibration_windows(text, number_tokenizer(), count=4, length=8, seed=seed).sha256

    assert digest(0) == digest(0) != digest(1)


@pytest.mark.parametrize("config", [LlamaConfig, Qwen2Config])
def test_checkpoint_without_tokenizer(tmp_path, config):
    config().save_pretrained(tmp_path)  # for Qwen2 transformers then makes an empty tokenizer
    with pytest.raises(InputError, match=r"no tokenizer.*tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_checkpoint_with_tokenizer(tmp_path):
    number_tokenizer().save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path)("3 1 4")["input_ids"] == [3, 1, 4]
