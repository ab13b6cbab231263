"""The low-rank repair: what is trained, its rate, and that an interruption changes nothing."""

import math

import pytest
import torch
from tiny import tiny_model
from transformers import get_cosine_schedule_with_warmup

from q2n.errors import InputError, NumericalError, ResumeError
from q2n.models.targets import targets_in
from q2n.preprocess.restorative_lora import RestorativeLora
from q2n.preprocess.resume_file import ResumeFile

pytest.importorskip("peft")
pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def exact(monkeypatch):
    """Matrix products in float32, on a machine that is fast in bfloat16 too."""
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)


def tokens(count: int = 6, length: int = 16) -> torch.Tensor:
    return torch.randint(3, 128, (count, length), generator=torch.Generator().manual_seed(3))


def linears(model) -> list[str]:
    return [name for name in targets_in(model) if any(char.isdigit() for char in name)]


def train(how, folder, *, stop_after=None, windows=None, told="same"):
    """The model after training, and the losses."""
    model = tiny_model("llama")
    kept = ResumeFile(folder / "training.safetensors", {"told": told})
    losses = []
    windows = tokens() if windows is None else windows
    for loss in how.train(model, linears(model), windows, kept):
        losses.append(loss)
        if len(losses) == stop_after:
            return None, losses
    return model, losses


HOW = {"steps": 12, "rank": 4, "learning_rate": 0.01, "save_every": 4}


def test_loss_on_the_windows_falls(tmp_path):
    how = RestorativeLora(**{**HOW, "steps": 60, "dropout": 0.0})
    _, losses = train(how, tmp_path, windows=tokens(2))
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


def test_changes_have_low_rank_and_spare_left_linears(tmp_path):
    before = {name: x.weight() for name, x in targets_in(tiny_model("llama")).items()}
    model, _ = train(RestorativeLora(**HOW, leave=("o_proj", "*.1.mlp.*")), tmp_path)
    for name, target in targets_in(model).items():
        change = (target.weight() - before[name]).double()
        left = name not in linears(model) or name.endswith("o_proj") or ".1.mlp." in name
        values = torch.linalg.svdvals(change)
        assert left == (not change.any()), name
        assert left or (values[4:] < 1e-5 * values[0]).all(), name


def test_rate_is_that_of_transformers():
    how = RestorativeLora(steps=200, accumulation=2, learning_rate=0.5)
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=0.5)
    schedule = get_cosine_schedule_with_warmup(optimizer, 5, 100)
    for update in range(how.updates):
        # Theirs begins its warm-up at 0, an update without effect: ours begins one later.
        expected = schedule.get_last_lr()[0] if update >= 5 else 0.5 * (update + 1) / 5
        assert how.rate(update) == pytest.approx(expected, abs=1e-9)
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize("stop", [1, 5, 9])
def test_resumed_training_comes_to_the_same_bits(tmp_path, stop):
    how = RestorativeLora(**HOW)
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    other.mkdir()
    whole, losses = train(how, one)
    train(how, other, stop_after=stop)
    resumed, rest = train(how, other)
    assert rest == losses[len(losses) - len(rest) :]
    assert len(rest) == 12 - (stop - 1) // 4 * 4
    for (name, x), y in zip(whole.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(x, y), name


def test_a_weight_without_a_gradient_so_far_is_kept_too(tmp_path):
    """As that of an expert to which no token came."""

    def start(*values):
        weights = {
            n: torch.nn.Parameter(torch.tensor([x])) for n, x in zip("ab", values, strict=True)
        }
        return weights, torch.optim.AdamW(weights.values(), lr=0.5)

    kept = ResumeFile(tmp_path / "training.safetensors", {})
    weights, optimizer = start(1.0, 2.0)
    weights["a"].square().backward()
    optimizer.step()
    kept.write(weights, optimizer, 1)
    others, again = start(5.0, 6.0)
    assert kept.read_into(others, again) == 1
    for found, step in ((weights, optimizer), (others, again)):
        step.zero_grad()
        (found["a"] + found["b"]).square().backward()
        step.step()
    assert weights["a"] == others["a"] and weights["b"] == others["b"]


def test_damaged_or_foreign_state_is_refused(tmp_path):
    how = RestorativeLora(**HOW)
    train(how, tmp_path, stop_after=6)
    with pytest.raises(ResumeError, match="told was same and is other"):
        train(how, tmp_path, told="other")
    file = tmp_path / "training.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(ResumeError, match="checksum"):
        train(how, tmp_path)
    file.write_bytes(data[:100])
    with pytest.raises(ResumeError, match="damaged"):
        train(how, tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps"),
        ({"dropout": 1.0}, "dropout"),
        ({"rank": 0}, "rank"),
        ({"learning_rate": math.inf}, "learning_rate"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(InputError, match=message):
        RestorativeLora(**options)


def test_nothing_left_to_train_is_refused(tmp_path):
    with pytest.raises(InputError, match="no linear layer is left"):
        train(RestorativeLora(**HOW, leave=("*",)), tmp_path)


def test_a_loss_that_is_not_finite_ends(tmp_path):
    with pytest.raises(NumericalError, match="loss of step"):
        train(RestorativeLora(**{**HOW, "learning_rate": 1e18}), tmp_path)
