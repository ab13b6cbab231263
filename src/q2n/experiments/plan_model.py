"""A model as a plan names it."""

from dataclasses import dataclass
from pathlib import Path

from q2n.models.checkpoint_files import resolve_checkpoint


@dataclass(frozen=True)
class PlanModel:
    """Two names of one model that differ in their revision are two models."""

    name: str
    revision: str | None = None
    """Of a model on the hub; None: the default one."""
    trust_remote_code: bool = False

    def folder(self) -> Path:
        """Where it lies, fetched if need be. Raises as `resolve_checkpoint`."""
        return resolve_checkpoint(
            self.name, self.revision, trust_remote_code=self.trust_remote_code
        )
