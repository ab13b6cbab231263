"""`q2n preprocess`: from a quantized checkpoint to a model that is quantized again."""

import pytest
from tiny import save_tiny, tiny_text
from transformers import AutoModelForCausalLM

from q2n.api import evaluate, preprocess, quantize
from q2n.cli.main import main
from q2n.errors import InputError, ResumeError
from q2n.preprocess.restorative_lora import RestorativeLora

pytest.importorskip("peft")
pytestmark = pytest.mark.slow

TEXT = {"windows": 4, "length": 16}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a text and a checkpoint that was quantized once."""
    folder = tmp_path_factory.mktemp("place")
    save_tiny(folder / "model")
    (folder / "text.txt").write_text(tiny_text())
    text = str(folder / "text.txt")
    quantize(
        folder / "model",
        folder / "once",
        method="rtn",
        bits=2,
        format="native",
        corpus=text,
        **TEXT,
    )
    return folder


def flags(place, output, *more):
    text = ("--corpus", str(place / "text.txt"), "--length", "16")
    return ["preprocess", str(place / "once"), "--output", str(output), *text, *more]


def test_result_predicts_better_and_is_quantized_again(place, tmp_path):
    text = str(place / "text.txt")
    output = tmp_path / "repaired"
    training = ("--steps", "80", "--rank", "8", "--learning-rate", "0.01")
    assert main(flags(place, output, *training)) == 0
    assert not (tmp_path / "repaired.partial").exists()
    before = evaluate(place / "once", ppl=text, length=16)
    after = evaluate(output, ppl=text, length=16)
    assert after.perplexity < 0.8 * before.perplexity
    assert AutoModelForCausalLM.from_pretrained(output).dtype is not None
    quantize(output, tmp_path / "twice", method="rtn", bits=2, corpus=text, **TEXT)


def test_interrupted_call_goes_on(place, tmp_path, monkeypatch):
    options = {"corpus": str(place / "text.txt"), "length": 16, "steps": 8, "save_every": 2}
    step = RestorativeLora._step

    def interrupted(self, adapted, optimizer, weights, window, number):
        if number == 5:
            raise KeyboardInterrupt
        return step(self, adapted, optimizer, weights, window, number)

    whole = preprocess(place / "once", tmp_path / "whole", **options)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RestorativeLora, "_step", interrupted)
        preprocess(place / "once", tmp_path / "cut", **options)
    with pytest.raises(InputError, match="go on with --resume"):
        preprocess(place / "once", tmp_path / "cut", **options)
    with pytest.raises(ResumeError, match="dtype was torch.float32 and is torch.bfloat16"):
        preprocess(place / "once", tmp_path / "cut", resume=True, dtype="bfloat16", **options)
    options["save_every"] = 4  # decides nothing of the result
    resumed = preprocess(place / "once", tmp_path / "cut", resume=True, **options)
    assert resumed.losses == whole.losses[4:]
    for file in ("model.safetensors", "config.json"):
        assert (tmp_path / "cut" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


@pytest.mark.parametrize("changes", [{"rotate": "hadamard"}, {"activation_bits": 4}])
def test_what_a_dense_model_would_lose_is_refused(place, tmp_path, changes):
    text = str(place / "text.txt")
    turned = tmp_path / "turned"
    settings = {"method": "rtn", "bits": 4, "format": "native", "corpus": text, **TEXT}
    quantize(place / "model", turned, **settings, **changes)
    with pytest.raises(InputError, match="rotates or rounds inputs while it runs"):
        preprocess(turned, tmp_path / "out", corpus=text, length=16, steps=1)
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--steps", "0"), "steps"),
        (("--length", "10000"), "length 10000"),
        (("--leave", "*"), "no linear layer"),
        (("--leave", "o_proj", "no_such"), "'no_such' matches no linear layer"),
        (("--corpus", "nowhere.txt"), "nowhere.txt"),
    ],
)
def test_bad_input_is_one_line(place, tmp_path, capsys, more, message):
    assert main(flags(place, tmp_path / "out", *more)) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
