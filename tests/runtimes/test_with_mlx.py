"""What mlx-lm makes of MLX checkpoints, on a CPU."""

from pathlib import Path

import pytest
import torch
from runtimes.environments import call
from runtimes.reference import NEW, PROMPT, reference, sample
from tiny import save_tiny

import q2n

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _mlx(runtime) -> None:
    runtime("mlx")


def compare(
    folders: list[Path], tokens: list[int], linears: int, tables: tuple[int, ...] = ()
) -> None:
    """Loss equal to four digits of the perplexity, greedy ids equal, every linear packed, and
    embeddings in one of the folders each with the bits of `tables`."""
    asked = {"folders": folders, "tokens": tokens, "prompt": PROMPT, "new": NEW}
    answers = call("mlx", **asked)["models"]
    assert [found["tables"] for found in answers] == (
        [[bits] for bits in tables] if tables else [[] for _ in folders]
    )
    for folder, found in zip(folders, answers, strict=True):
        expected = reference(folder, tokens)
        assert found["packed"] == linears, folder
        # The perplexity is exp(loss): 5e-5 of it is half of its fourth digit, at most.
        assert abs(found["loss"] - expected.loss) < 5e-5, folder
        assert found["greedy"] == expected.greedy, folder


def quantize_tiny(model: Path, out: Path, **settings: int) -> None:
    """Its blocks in 4 bits."""
    q2n.quantize(model, out, method="rtn", format="mlx", bits=4, only=("*proj",), **settings)


def random_tokens() -> list[int]:
    """Of a tiny model's vocabulary."""
    return torch.randint(3, 128, (40,), generator=torch.Generator().manual_seed(0)).tolist()


@pytest.mark.parametrize(
    ("bits", "symmetric", "dtype"),
    [(4, False, "float32"), (3, True, "float32"), (4, False, "half")],
)
def test_smollm2(smollm2: Path, tmp_path: Path, bits: int, symmetric: bool, dtype: str) -> None:
    out, grid = tmp_path / "out", {"bits": bits, "symmetric": symmetric}
    q2n.quantize(smollm2, out, method="rtn", runtime="mlx", dtype=dtype, **grid)
    compare([tmp_path / "out"], sample(smollm2), 210)


def test_every_width_and_grid(smollm2_head: Path, tmp_path: Path) -> None:
    """On two blocks of it."""
    folders = []
    for bits in (2, 3, 4, 5, 6, 8):
        for symmetric in (True, False):
            folders.append(tmp_path / f"{bits}-{symmetric}")
            q2n.quantize(
                smollm2_head,
                folders[-1],
                method="rtn",
                format="mlx",
                bits=bits,
                symmetric=symmetric,
                group_size=32 if bits == 3 else 64,
            )
    compare(folders, sample(smollm2_head), 14)


@pytest.mark.parametrize(
    ("architecture", "linears", "options"),
    [
        (
            "llama",
            7,
            {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32},
        ),  # groups of 128
        ("qwen2", 7, {"rope_theta": 5000.0}),
        ("qwen3", 7, {"rope_theta": 5000.0}),
        ("gemma2", 7, {}),
        ("gemma3_text", 7, {"layers": 7, "sliding_window": 8}),
        ("phi3", 4, {"original_max_position_embeddings": 128}),
    ],
)
def test_architectures(tmp_path: Path, architecture: str, linears: int, options: dict) -> None:
    """Whose names of settings, and defaults, are not always the ones of transformers."""
    layers = options.setdefault("layers", 3)
    model = save_tiny(tmp_path / "model", architecture, **options)
    group_size = 128 if options.get("hidden_size") == 128 else 32
    quantize_tiny(model, tmp_path / "out", group_size=group_size)
    compare([tmp_path / "out"], random_tokens(), linears * layers)


def test_packed_embeddings_of_a_tied_model(smollm2_head: Path, tmp_path: Path) -> None:
    """Which multiply as its head; in groups of another size than the blocks', and in the same."""
    folders = [tmp_path / "8", tmp_path / "4"]
    for bits, out in zip((8, 4), folders, strict=True):
        grid = {"bits": 4, "group_size": 32}
        q2n.quantize(
            smollm2_head, out, method="rtn", format="mlx", outside_bits=bits, dtype="half", **grid
        )
    compare(folders, sample(smollm2_head), 14, (8, 4))


@pytest.mark.parametrize(
    ("architecture", "linears", "tied"),
    [("llama", 7, False), ("gemma3_text", 7, True), ("phi3", 4, False), ("gemma2", 7, True)],
)
def test_packed_tables_of_architectures(
    tmp_path: Path, architecture: str, linears: int, tied: bool
) -> None:
    """A head of its own is one linear more; Gemma scales rows."""
    layers = 7 if architecture == "gemma3_text" else 2
    model = save_tiny(tmp_path / "model", architecture, layers=layers, tie_word_embeddings=tied)
    quantize_tiny(model, tmp_path / "out", group_size=32, outside_bits=6)
    compare([tmp_path / "out"], random_tokens(), layers * linears + (not tied), (6,))
