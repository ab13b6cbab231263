"""llama.cpp's own quants and q2n's, in the same blocks and bytes, from the logits of llama.cpp.

Both are calibrated on the same windows: q2n draws them, llama-imatrix reads their text. Every
linear of the decoder is in one type (`--pure`), embeddings and head in Q8_0. llama-perplexity
compares each file with the original's logits: KL divergence, perplexity, same top token, over
windows of 512 tokens of the evaluation text, their second halves. One record a cell goes to a JSONL
file, which `q2n report` reads; a cell that is there is not repeated.

    python benchmarks/peer_llama_cpp.py --tools llama.cpp/build/bin --data FOLDER --work FOLDER \\
        --results peer_llama_cpp.jsonl --model smollm2-135m --types q2_0 iq4_nl q4_0 q4_1

The tools are built from llama.cpp's sources: cmake --build build --target llama-perplexity
llama-quantize llama-imatrix.
"""

import argparse
import hashlib
import json
import re
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from measuring import peers
from transformers import AutoTokenizer

import q2n
from q2n.block_types import BLOCK_TYPES
from q2n.data.texts import Texts
from q2n.experiments.surroundings import machine, software
from q2n.formats import FORMATS
from q2n.models.source import open_source
from q2n.report.experiment import ExperimentRecord, TextResult

LENGTH = 512
TRIES = 8
SMALL = ("q2_k", "q3_k", "q4_k", "q5_k")
"""Of these AutoRound has mixtures; the one in S is nearest to one type for all."""
WHO = {
    "llama.cpp": "llama.cpp, importance matrix",
    "autoround": "AutoRound, 50 iterations",
    "off": "q2n, GPTQ",
    "good": "q2n, GPTQ good",
    "best": "q2n, GPTQ best",
}
LINES = {
    "perplexity": r"Mean PPL\(Q\)\s*:\s*([\d.]+)",
    "divergence": r"Mean\s+KLD:\s*([\d.-]+)",
    "divergence_error": r"Mean\s+KLD:\s*[\d.-]+ ±\s*([\d.]+)",
    "same_top": r"Same top p:\s*([\d.]+)",
    "same_top_error": r"Same top p:\s*[\d.]+ ±\s*([\d.]+)",
}
"""What llama-perplexity prints."""


def main() -> None:
    options = parse_options()
    options.work.mkdir(parents=True, exist_ok=True)
    original = written_plain(options)
    base = logits_of(options, original)
    importance = importance_matrix(options, original)
    for kind in options.types:
        for who in ("llama.cpp", *["autoround"] * bool(options.environments), *options.quality):
            labels = {"model": named(options), "bits": width(kind), "by": WHO[who]}
            labels["seed"] = options.seed
            if not any(is_of(options, labels, line) for line in past(options.results)):
                file = quantized(options, original, importance, kind, who)
                found = record(options, labels, kind, file, compared(options, base, file))
                with options.results.open("a") as results:
                    results.write(json.dumps(found.to_json()) + "\n")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tools", type=Path, required=True, help="llama.cpp's programs")
    parser.add_argument("--work", type=Path, required=True, help="folder for models")
    parser.add_argument("--data", type=Path, required=True, help="text folder")
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--model", default="smollm2-135m", help="name or folder")
    parser.add_argument("--types", nargs="+", default=["iq4_nl"], choices=BLOCK_TYPES)
    parser.add_argument("--quality", nargs="+", default=["good"], choices=["off", "good", "best"])
    parser.add_argument(
        "--environments", type=Path, help="AutoRound too, from an environment in this folder"
    )
    parser.add_argument("--calibration", default="wiki.train.head.raw")
    parser.add_argument("--evaluation", default="wiki.test.raw")
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--chunks", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def named(options: argparse.Namespace) -> str:
    """The model's name; of a folder the last part."""
    return Path(options.model).name


def past(results: Path) -> list[dict[str, Any]]:
    """The lines that are there."""
    return [json.loads(line) for line in results.open()] if results.exists() else []


def is_of(options: argparse.Namespace, labels: dict[str, Any], line: dict[str, Any]) -> bool:
    """Whether a line has the results of a cell on this text."""
    found = [(text["text"], text["windows"]) for text in line["texts"]]
    return labels == line["labels"] and found == [(options.evaluation, options.chunks)]


def written_plain(options: argparse.Namespace) -> Path:
    """The original in float32."""
    folder = options.work / f"{named(options)}-f32"
    if not folder.exists():
        source = open_source(options.model, dtype="float32")
        FORMATS["gguf"].storing_outside("f32").write(folder, source, {})
    return folder / "model.gguf"


def logits_of(options: argparse.Namespace, original: Path) -> Path:
    """llama.cpp's file of the original's logits."""
    base = options.work / f"{named(options)}-{options.evaluation}-{options.chunks}.logits"
    if not base.exists():
        text = options.data / options.evaluation
        run(options, "llama-perplexity", "-m", original, "-f", text, "-c", LENGTH,
            "--chunks", options.chunks, "--kl-divergence-base", base)  # fmt: skip
    return base


def importance_matrix(options: argparse.Namespace, original: Path) -> Path:
    """llama.cpp's importance matrix of the windows that q2n calibrates on."""
    matrix = options.work / f"{named(options)}-{options.seed}.imatrix"
    if not matrix.exists():
        text = options.work / f"{named(options)}-{options.seed}.txt"
        text.write_text(calibration_text(options, original.parent))
        run(options, "llama-imatrix", "-m", original, "-f", text, "-c", LENGTH, "-o", matrix)
    return matrix


def calibration_text(options: argparse.Namespace, folder: Path) -> str:
    """The windows one after another."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    windows = Texts(folder, tokenizer).calibration(
        str(options.data / options.calibration),
        count=options.windows,
        length=LENGTH,
        seed=options.seed,
    )
    return "".join(tokenizer.decode(row, skip_special_tokens=True) for row in windows.of_text)


def quantized(
    options: argparse.Namespace, original: Path, importance: Path, kind: str, who: str
) -> Path:
    """The model in blocks of a type, by llama.cpp or by q2n with a quality."""
    place = options.work / f"{named(options)}-{kind}-{who}-{options.seed}"
    if who == "llama.cpp":
        file = place.with_name(f"{place.name}.gguf")
        if not file.exists():
            run(options, "llama-quantize", "--imatrix", importance, "--pure",
                "--token-embedding-type", "q8_0", "--output-tensor-type", "q8_0",
                original, file, BLOCK_TYPES[kind].name)  # fmt: skip
        return file
    if who == "autoround":
        return rounded_by_autoround(options, place, kind)
    if not place.exists():
        q2n.quantize(
            options.model,
            place,
            method="gptq",
            grid=kind,
            quality=None if who == "off" else who,
            corpus=str(options.data / options.calibration),
            windows=options.windows,
            length=LENGTH,
            seed=options.seed,
        )
    return place / "model.gguf"


def rounded_by_autoround(options: argparse.Namespace, place: Path, kind: str) -> Path:
    """AutoRound's file, of the same windows."""
    if not place.exists():
        peers.quantize(
            "peer_autoround.py",
            ["--gguf", f"{kind}_s" if kind in SMALL else kind, "--iters", 50],
            place,
            environment=options.environments / "peer_autoround",
            model=options.model,
            corpus=str(options.data / options.calibration),
            windows=options.windows,
            length=LENGTH,
            seed=options.seed,
        )
    return next(place.rglob("*.gguf"))


def compared(options: argparse.Namespace, base: Path, file: Path) -> dict[str, float]:
    """What llama-perplexity says of a file. It sometimes ends before its log is written: then it
    runs again."""
    for _ in range(TRIES):
        text = run(options, "llama-perplexity", "-m", file, "-c", LENGTH,
                   "--kl-divergence-base", base, "--kl-divergence")  # fmt: skip
        found = {name: re.search(pattern, text) for name, pattern in LINES.items()}
        if all(found.values()):
            return {name: float(match[1]) for name, match in found.items() if match}
    raise SystemExit(f"llama-perplexity says nothing of {file}:\n{text[-2000:]}")


def run(options: argparse.Namespace, program: str, *arguments: Any) -> str:
    """What a program of llama.cpp prints."""
    command = [str(options.tools / program), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return done.stdout + done.stderr


def record(
    options: argparse.Namespace,
    labels: dict[str, Any],
    kind: str,
    file: Path,
    found: dict[str, float],
) -> ExperimentRecord:
    """What llama.cpp said of a file. Its percentages become shares."""
    share = {name: found[name] / 100 for name in ("same_top", "same_top_error") if name in found}
    text = TextResult(
        text=options.evaluation,
        protocol="llama.cpp",
        length=LENGTH,
        windows=options.chunks,
        sha256=sha256(options.data / options.evaluation),
        perplexity_error=None,
        **{**found, **share},
    )
    cell = hashlib.sha256(json.dumps([labels, text.sha256]).encode()).hexdigest()[:16]
    return ExperimentRecord(
        cell=cell,
        key=cell,
        plan="llama.cpp",
        title="GGUF files of q2n and of llama.cpp, in the same blocks",
        labels=labels,
        places={
            "bits": list(BLOCK_TYPES).index(kind),
            "by": list(WHO.values()).index(labels["by"]),
        },
        compare={} if labels["by"] == WHO["llama.cpp"] else {"by": WHO["llama.cpp"]},
        settings={
            "model": named(options),
            "grid": kind,
            "windows": options.windows,
            "length": LENGTH,
            "corpus": options.calibration,
        },
        software=software(),
        machine=machine(),
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        command=f"python benchmarks/peer_llama_cpp.py --types {kind}",
        bits_per_weight=BLOCK_TYPES[kind].bits_per_weight,
        bytes=file.stat().st_size,
        texts=[text],
    )


def width(kind: str) -> str:
    """Bits of a weight in a type, and its name."""
    return f"{BLOCK_TYPES[kind].bits_per_weight:g}, {kind}"


def sha256(file: Path) -> str:
    """Of a text, which llama.cpp cuts itself."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


if __name__ == "__main__":
    main()
