"""What an interrupted training goes on with: trained weights, the state of Adam, the step.

One safetensors file, written whole or not at all. Its metadata have a checksum of the tensors and
one of everything that the training was told, so that it is not taken for another's.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.optim import Optimizer

from q2n.disk.whole import write_whole
from q2n.errors import ResumeError

_STATE = ("exp_avg", "exp_avg_sq", "step")
"""Of Adam, for each weight that had a gradient: an expert without tokens so far had none."""


@dataclass(frozen=True)
class ResumeFile:
    """The file of one training."""

    path: Path
    told: Mapping[str, Any]
    """Settings, checksums of model and text: JSON values."""

    def write(self, weights: Mapping[str, Tensor], optimizer: Optimizer, step: int) -> None:
        """Keep the state after `step` steps, in the place of an earlier one.

        Raises:
            OSError: it cannot be written.
        """
        tensors: dict[str, Tensor] = {}
        for name, weight in weights.items():
            tensors[f"weight/{name}"] = weight.detach()
            if weight in optimizer.state:
                for key in _STATE:
                    tensors[f"{key}/{name}"] = optimizer.state[weight][key]
        tensors = {key: x.cpu().contiguous() for key, x in tensors.items()}
        about = {
            "told": json.dumps(self.told, sort_keys=True),
            "step": str(step),
            "sha256": _digest(tensors),
        }
        write_whole(self.path, save(tensors, about))

    def steps(self) -> int:
        """How many steps were taken before, as the file says; its tensors are not read.

        Raises:
            ResumeError: it is no such file.
        """
        if not self.path.exists():
            return 0
        try:
            with safe_open(self.path, "pt") as file:
                return int((file.metadata() or {})["step"])
        except (SafetensorError, OSError, KeyError) as cause:
            raise ResumeError(f"{self.path} is damaged ({cause}); {_REMEDY}") from cause

    @torch.no_grad()
    def read_into(self, weights: Mapping[str, Tensor], optimizer: Optimizer) -> int:
        """Set weights and state to what was kept; returns the step to go on with, 0 where
        nothing was.

        Raises:
            ResumeError: the file is damaged, or of a training that was told something else.
        """
        if not self.path.exists():
            return 0
        tensors, about = self._read()
        for name, weight in weights.items():
            weight.copy_(tensors[f"weight/{name}"])
            state = {key: tensors.get(f"{key}/{name}") for key in _STATE}
            if (step := state["step"]) is not None:  # which Adam keeps on the CPU
                moved = {key: x.to(weight.device) for key, x in state.items() if x is not None}
                optimizer.state[weight] = {**moved, "step": step}
        return int(about["step"])

    def _read(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        try:
            with safe_open(self.path, "pt") as file:
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
                about = file.metadata() or {}
        except (SafetensorError, OSError) as cause:
            raise ResumeError(f"{self.path} is damaged ({cause}); {_REMEDY}") from cause
        if about.get("sha256") != _digest(tensors):
            raise ResumeError(f"{self.path} is damaged (its checksum differs); {_REMEDY}")
        self._compare(json.loads(about["told"]))
        return tensors, about

    def _compare(self, before: Mapping[str, Any]) -> None:
        now = json.loads(json.dumps(self.told))
        differing = [
            f"{key} was {before.get(key)} and is {now.get(key)}"
            for key in {**before, **now}
            if before.get(key) != now.get(key)
        ]
        if differing:
            raise ResumeError(
                f"the interrupted training in {self.path.parent} was another one: "
                f"{'; '.join(differing)}. {_REMEDY.capitalize()}"
            )


_REMEDY = "delete it to start again"


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
