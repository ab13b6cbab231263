"""Other tools on the windows that q2n calibrates on, each in an environment of its own."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from q2n.data.corpora import load_corpus
from q2n.data.protocols import ProtocolName
from q2n.data.tokenizer import load_tokenizer
from q2n.data.windows import calibration_windows
from q2n.models.checkpoint_files import resolve_checkpoint

SCRIPTS = Path(__file__).parent.parent


def quantize(
    script: str,
    arguments: Sequence[object],
    folder: Path,
    *,
    environment: Path,
    model: str,
    corpus: str,
    data_dir: str | None = None,
    windows: int,
    length: int,
    seed: int,
    protocol: ProtocolName = "q2n",
) -> dict[str, Any]:
    """Run a peer's script into `folder`; returns what it left in peer.json.

    `corpus` is cut as `q2n.quantize` would do it with the same settings.
    """
    checkpoint = resolve_checkpoint(model)
    cut = calibration_windows(
        load_corpus(corpus, "train", data_dir=data_dir),
        load_tokenizer(checkpoint),
        count=windows,
        length=length,
        seed=seed,
        protocol=protocol,
    )
    file = folder.with_suffix(".windows.safetensors")
    save_file({"tokens": cut.tokens.contiguous()}, file)
    command = [sys.executable, SCRIPTS / script, "--make-env", environment]
    command += ["--model", checkpoint, "--calibration", file, "--output", folder, *arguments]
    subprocess.run([str(part) for part in command], check=True, stdout=sys.stderr)
    return json.loads((folder / "peer.json").read_text())
