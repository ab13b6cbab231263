"""What is damaged, and what is right of a run that went through all the same."""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

from tiny import save_tiny, tiny_text

from fuzz.right import windows, wrong_weights
from q2n.cli.main import main
from q2n.data.windows import TokenWindows
from q2n.disk.folders import partial_folder
from q2n.pipeline.store import RunStore

WINDOWS, LENGTH = 4, 8
TEXT_FLAGS = ("--method", "gptq", "--windows", str(WINDOWS), "--length", str(LENGTH))


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of input."""

    files: str
    """Pattern of the files of which one is damaged."""
    flags: tuple[str, ...]
    wrong: Callable[[Path], str | None]
    """What is wrong with a result that was written."""


def weights(place: Path) -> str | None:
    """The result has the weights of the model, as transformers loads it."""
    return wrong_weights(place / "model", place / "out")


def text(place: Path) -> str | None:
    """The run read the text's own tokens."""
    read = (place / "text.txt").read_text(encoding="utf-8-sig")
    tokens = windows(place / "model", read, count=WINDOWS, length=LENGTH)
    expected = TokenWindows(tokens=tokens, label="").sha256
    if json.loads((place / "out/q2n.json").read_text())["settings"]["text_sha256"] != expected:
        return "calibrated on other tokens"
    return weights(place)


def same_bytes(place: Path) -> str | None:
    """The result is that of a run which was never interrupted."""
    found, expected = contents(place / "out"), contents(place / "expected")
    differing = {name for name in found.keys() | expected if found.get(name) != expected.get(name)}
    return f"{sorted(differing)} differ" if differing else None


KINDS = {
    "checkpoint": Kind(files="model/model.safetensors", flags=("--method", "rtn"), wrong=weights),
    "config": Kind(files="model/*config.json", flags=("--method", "rtn"), wrong=weights),
    "tokenizer": Kind(files="model/tokenizer*", flags=TEXT_FLAGS, wrong=text),
    "text": Kind(files="text.txt", flags=TEXT_FLAGS, wrong=text),
    "store": Kind(files="out.partial/*", flags=(*TEXT_FLAGS, "--resume"), wrong=same_bytes),
}


def prepare(place: Path) -> None:
    """Models of one block and of two, a text, a run that was interrupted between the two blocks,
    and what it should have given."""
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "head_dim": 8}
    for layers, name in ((1, "one"), (2, "model")):
        save_tiny(place / name, layers=layers, num_key_value_heads=1, **sizes)
    (place / "text.txt").write_text(tiny_text(30))
    assert quantize(place, *TEXT_FLAGS) == 0
    shutil.rmtree(place / "out")  # a process's first sums may differ in the last digit
    with _interrupted_at(1):
        assert quantize(place, *TEXT_FLAGS) == 130
    shutil.copytree(partial_folder(place / "out"), place / "interrupted")
    assert quantize(place, *TEXT_FLAGS, "--resume") == 0
    (place / "out").rename(place / "expected")


def lay_out(kind: str, base: Path, place: Path) -> None:
    """What one case works on."""
    place.mkdir()
    shutil.copytree(base / ("model" if kind == "store" else "one"), place / "model")
    shutil.copyfile(base / "text.txt", place / "text.txt")
    (place / "expected").symlink_to(base / "expected")
    if kind == "store":
        shutil.copytree(base / "interrupted", place / "out.partial")


def quantize(place: Path, *flags: str) -> int:
    """The command's exit code. It is called in the folder: paths are in what it writes."""
    with contextlib.chdir(place):
        words = ("quantize", "model", "--output", "out", "--corpus", "text.txt")
        return main([*words, "--bits", "8", "--format", "native", "--quiet", *flags])


def contents(folder: Path) -> dict[str, str]:
    """File -> what is in it; times are not compared."""
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in folder.rglob("*")
        if file.is_file() and "timings" not in file.name
    }


@contextlib.contextmanager
def _interrupted_at(index: int) -> Iterator[None]:
    """Ctrl-C when this block is to be written."""
    write = RunStore.write_block

    def interrupted(self: RunStore, block: int, *rest, **named) -> None:
        if block == index:
            raise KeyboardInterrupt
        write(self, block, *rest, **named)

    with patch.object(RunStore, "write_block", interrupted):
        yield
