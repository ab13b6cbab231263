"""Token windows: the drawing rule, the cutting rule, the hash, and what is refused."""

import logging
import random

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import LlamaConfig, PreTrainedTokenizerFast, Qwen2Config

from q2n.data import excerpts
from q2n.data import windows as windows_module
from q2n.data.corpora import Corpus, Joined
from q2n.data.pieces import PieceTokenizer
from q2n.data.tokenizer import load_tokenizer
from q2n.data.windows import TokenWindows, calibration_windows, evaluation_windows
from q2n.errors import InputError

WORDS = 60
BOS = WORDS + 1


def number_tokenizer(bos=False):
    """Word "i" is token i, so that a window shows where it was cut."""
    vocabulary = {str(i): i for i in range(WORDS)} | {"<unk>": WORDS, "<s>": BOS}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", BOS)]
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


class TestBos:
    """The first token of each window gives way to BOS where the tokenizer adds one."""

    @pytest.mark.parametrize("stride", [None, 3])
    def test_evaluation(self, stride):
        def cut(protocol, **options):
            text = corpus(numbers(30))
            tokenizer = number_tokenizer(bos=True)
            return evaluation_windows(text, tokenizer, length=8, protocol=protocol, **options)

        without, windows = cut("gptq").tokens, cut("q2n", stride=stride).tokens
        assert without[0].tolist() == [BOS, 0, 1, 2, 3, 4, 5, 6]  # the tokenizer's own
        assert (without == BOS).sum() == 1
        assert (windows[:, 0] == BOS).all()
        text = torch.tensor([BOS, *range(30)])
        assert torch.equal(windows[:, 1:], text.unfold(0, 8, stride or 8)[:, 1:])
        assert torch.equal(cut("q2n", stride=stride).of_text, text.unfold(0, 8, stride or 8))

    @pytest.mark.parametrize("by_document", [False, True])
    def test_calibration(self, by_document):
        def drawn(protocol):
            text = corpus(numbers(50), numbers(30), by_document=by_document)
            return calibration_windows(
                text, number_tokenizer(bos=True), count=20, length=8, seed=0, protocol=protocol
            )

        without, windows = drawn("gptq").tokens, drawn("q2n").tokens
        assert 0 < (without[:, 1:] < WORDS).sum() == 20 * 7
        assert (windows[:, 0] == BOS).all() and (without[:, 0] != BOS).any()
        assert torch.equal(windows[:, 1:], without[:, 1:])

    def test_a_tokenizer_that_adds_none_changes_nothing(self):
        def cut(protocol):
            return evaluation_windows(
                corpus(numbers(40)), number_tokenizer(), length=8, protocol=protocol
            )

        assert number_tokenizer().bos_token_id == BOS  # it has one
        assert cut("q2n").sha256 == cut("gptq").sha256

    def test_an_unknown_word_is_not_taken_for_bos(self):
        tokenizer = number_tokenizer()
        tokenizer.bos_token = "<unk>"
        assert PieceTokenizer(tokenizer).bos is None


@pytest.mark.parametrize(
    ("protocol", "length", "stride", "counts"),
    [
        ("q2n", 8, None, [7, 7, 7]),
        ("q2n", 8, 3, [7, 3, 3]),
        ("q2n", 8, 8, [7, 7, 7]),
        ("gptq", 8, None, [7, 7, 7]),
        ("llama.cpp", 8, None, [3, 3, 3]),
        ("llama.cpp", 9, None, [4, 4, 4]),  # positions 4 .. 7 predict 5 .. 8
    ],
)
def test_predictions_that_count(protocol, length, stride, counts):
    windows = evaluation_windows(
        corpus(numbers(60)), number_tokenizer(), length, limit=3, stride=stride, protocol=protocol
    )
    assert windows.scored.tolist() == counts
    assert (windows.protocol, windows.stride) == (protocol, stride)


@pytest.mark.parametrize("protocol", ["gptq", "gptq-new", "llama.cpp"])
def test_published_windows_do_not_overlap(protocol):
    with pytest.raises(InputError, match=f"{protocol}.* do not overlap; leave --stride out"):
        evaluation_windows(UNTOUCHED, number_tokenizer(), 8, stride=4, protocol=protocol)


def gptqs_c4(documents, tokenizer, seqlen, count):
    """`get_c4` of GPTQ's datautils.py, its evaluation part, in its own words."""
    random.seed(0)
    valenc = []
    for _ in range(count):
        while True:
            i = random.randint(0, len(documents) - 1)
            tmp = tokenizer(documents[i], return_tensors="pt")
            if tmp.input_ids.shape[1] >= seqlen:
                break
        i = random.randint(0, tmp.input_ids.shape[1] - seqlen - 1)
        valenc.append(tmp.input_ids[:, i : i + seqlen])
    return torch.hstack(valenc)


@pytest.mark.parametrize("bos", [False, True])
def test_windows_that_are_drawn_are_gptqs(bos):
    documents = [numbers(n, start=7 * i) for i, n in enumerate([6, 12, 30, 3, 6, 50])]
    drawn = corpus(*documents, by_document=True, drawn=True, most_windows=25)
    tokenizer = number_tokenizer(bos=bos)
    expected = gptqs_c4(documents, tokenizer, 8, 25).view(25, 8)
    windows = evaluation_windows(drawn, tokenizer, 8, protocol="gptq")
    assert torch.equal(windows.tokens, expected)
    first = evaluation_windows(drawn, tokenizer, 8, protocol="gptq", limit=4)
    assert torch.equal(first.tokens, expected[:4])


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


class Untouched:
    """A text that must not be read."""

    def __iter__(self):
        raise AssertionError("read before the options were looked at")


UNTOUCHED = Corpus(label="numbers", parts=Untouched())
HUGE = 10**12


@pytest.mark.parametrize(
    "options",
    [
        {"length": 1},
        {"length": 0},
        {"length": -3},
        {"length": HUGE},
        {"length": 8, "limit": 0},
        {"length": 8, "limit": -1},
        {"length": 8, "stride": 9},
        {"length": 8, "stride": 0},
    ],
)
def test_senseless_evaluation_options_are_refused(options):
    with pytest.raises(InputError):
        evaluation_windows(UNTOUCHED, number_tokenizer(), **options)


@pytest.mark.parametrize(
    ("count", "length"), [(0, 8), (-1, 8), (1, 1), (1, -8), (HUGE, 8), (1, HUGE), (2**20, 2**20)]
)
def test_senseless_calibration_options_are_refused(count, length):
    with pytest.raises(InputError, match="windows"):
        calibration_windows(UNTOUCHED, number_tokenizer(), count=count, length=length, seed=0)


def test_a_limit_beyond_the_text_takes_the_text():
    windows = evaluation_windows(corpus(numbers(31)), number_tokenizer(), length=8, limit=HUGE)
    assert len(windows) == 3


def test_overlapping_windows_beyond_memory_are_refused(monkeypatch):
    monkeypatch.setattr(windows_module, "MOST_TOKENS", 100)
    with pytest.raises(InputError, match="24 windows of 8 tokens are more than 100"):
        evaluation_windows(corpus(numbers(31)), number_tokenizer(), length=8, stride=1)
    with pytest.raises(InputError, match="more than 100 tokens; give fewer"):
        evaluation_windows(corpus(numbers(500)), number_tokenizer(), length=8)


def test_evaluation_reads_no_further_than_it_needs():
    def parts():
        yield numbers(200_000)
        raise AssertionError("read on")

    text = Corpus(label="numbers", parts=parts())
    windows = evaluation_windows(text, number_tokenizer(), length=8, limit=2)
    assert windows.tokens.tolist() == [list(range(8)), list(range(8, 16))]


def test_tokens_outside_the_vocabulary_are_refused():
    windows = evaluation_windows(corpus(numbers(40)), number_tokenizer(), length=8)
    assert windows.within(40) is windows.within(None) is windows
    with pytest.raises(InputError, match="token 39, .*vocabulary of 39"):
        windows.within(39)


class TestLongText:
    """More than so many characters: windows are drawn from excerpts."""

    @pytest.fixture(autouse=True)
    def short_is_long(self, monkeypatch):
        monkeypatch.setattr(excerpts, "WHOLE", 1000)

    def drawn(self, text, seed=0, count=40):
        corpus = Corpus(label="long", parts=text)
        return calibration_windows(corpus, counter(), count=count, length=8, seed=seed)

    def test_windows_are_successive_tokens_from_everywhere(self):
        windows = self.drawn([letters(30_000)]).tokens
        assert torch.equal(windows - windows[:, :1], torch.arange(8).expand(40, 8))
        starts = windows[:, 0].sort().values
        assert int(starts[0]) < 3000 and int(starts[-1]) > 27_000
        assert len(set(starts.tolist())) > 35

    def test_the_seed_decides_and_the_parts_do_not(self):
        text = letters(5000)
        halves = [text[:1234], text[1234:]]
        assert self.drawn([text]).sha256 == self.drawn(halves).sha256
        assert self.drawn([text]).sha256 != self.drawn([text], seed=1).sha256

    def test_it_is_said(self):
        assert "excerpts of 'long'" in self.drawn([letters(5000)]).notes[0]
        assert not self.drawn([letters(900)]).notes

    def test_excerpts_with_few_tokens_are_drawn_again(self):
        mixed = self.drawn([letters(1280), "\n" * 1280])
        assert int(mixed.tokens.max()) < 1280
        with pytest.raises(InputError, match="excerpts of 128 characters with no more than 8"):
            self.drawn(["\n" * 5000])


def letters(count):
    """Different characters, each of them a token of its own."""
    return "".join(chr(0x4E00 + i) for i in range(count))


def counter():
    """The token of a character is its number; a line end is none."""
    tokenizer = Tokenizer(models.WordLevel({chr(0x4E00 + i): i for i in range(30_000)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split("", "isolated")]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


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


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("tokenizer.json", "[]"),
        ("tokenizer.json", '{"version": "1.0", "mod'),
        ("tokenizer.json", '{"model": {"type": "Unheard"}}'),
        ("tokenizer.json", "\x00\x01"),
        ("tokenizer_config.json", "[]"),
        ("tokenizer_config.json", '{"tokenizer_class": 3}'),
        ("tokenizer_config.json", '{"auto_map": {"AutoTokenizer": ["own.Own", null]}}'),
    ],
)
def test_odd_tokenizer_files_are_one_line(tmp_path, file, content):
    number_tokenizer().save_pretrained(tmp_path)
    (tmp_path / file).write_text(content)
    with pytest.raises(InputError, match="no tokenizer can be loaded") as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)


def test_windows_with_more_tokens_than_their_text_are_noted():
    few, many = (
        calibration_windows(corpus(numbers(40)), number_tokenizer(), count=x, length=8, seed=0)
        for x in (5, 6)
    )
    assert few.notes == ()
    assert "6 calibration windows of 8 tokens overlap" in many.notes[0] and "40" in many.notes[0]
