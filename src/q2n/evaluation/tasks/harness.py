"""lm-evaluation-harness as a library: its tasks, and a model of ours in its hands.

The model is wrapped as the harness wraps its own (`HFLM`), with the harness's defaults. In
particular a prompt begins with the BOS token where the model's tokenizer adds one by itself (that
of Gemma does), and an empty context is that token.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from q2n.errors import InputError, NumericalError, Q2NError, reason_of
from q2n.evaluation.tasks.local_tasks import Leaves
from q2n.evaluation.tasks.names import CONFIGURATIONS
from q2n.evaluation.tasks.results import TaskResult
from q2n.evaluation.tasks.surroundings import silence
from q2n.linalg.forward_products import forward_products
from q2n.option_types import shown

INSTALL = 'pip install "q2n[eval]"'


def require_harness() -> None:
    """
    Raises:
        InputError: it is not installed.
    """
    if find_spec("lm_eval") is None:
        raise InputError(f"tasks are run by lm-evaluation-harness, not installed: {INSTALL}")


def harness_version() -> str:
    """Of the installed harness."""
    return metadata.version("lm_eval")


@cache
def all_names() -> Mapping[str, set[str]]:
    """Every task, group and tag of the harness; a tag with its tasks. Takes seconds, once."""
    index = _manager([]).task_index
    return {name: entry.tags if entry.yaml_path is None else set() for name, entry in index.items()}


class Tasks:
    """The harness's tasks of some names."""

    def __init__(self, names: Iterable[str], folder: Path | None = None):
        """`folder` has configurations that take the place of the harness's."""
        self._manager = _manager(list(names), folder)

    def leaves(self, name: str) -> Leaves:
        """The tasks of which a task or group that is read from local files consists."""
        index = self._manager.task_index
        if index[name].kind.name == "TASK":
            own = [index[name]]
        else:
            own = [x for x in index.values() if x.kind.name == "TASK" and _in(x, index[name])]
        return {entry.name: (entry.yaml_path, entry.cfg) for entry in own}

    def load(self, name: str) -> Any:
        """A task or group with its data.

        Raises:
            InputError: the data cannot be had or are not as they must be.
        """
        try:
            with silence():
                loaded = self._manager.load([name])
        except Exception as cause:  # of the network, of `datasets`, of the task's own code
            raise InputError(
                f"task {name!r} cannot be loaded ({reason_of(cause)}); without a network give its "
                "files with --data-dir"
            ) from cause
        return (loaded.get("groups") or loaded["tasks"])[name]

    def run(
        self, lm: Any, name: str, task: Any, *, shots: int | None, limit: int | None
    ) -> dict[str, Any]:
        """What the harness says of a model on a loaded task.

        Raises:
            InputError: the model or the task does not run.
            NumericalError: a log-likelihood is NaN or infinite.
        """
        from lm_eval import simple_evaluate

        try:
            with silence(), _without_machine_report(), forward_products(lm.device):
                return simple_evaluate(
                    lm, tasks=[task], num_fewshot=shots, limit=limit, task_manager=self._manager
                )
        except Q2NError:
            raise
        except Exception as cause:
            raise InputError(f"task {name!r} does not run ({reason_of(cause)})") from cause


def _manager(names: list[str], folder: Path | None = None) -> Any:
    """The harness's index: of the folders of some tasks, or of all of them, which takes longer."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    configurations = Path(lm_eval.__file__).parent / "tasks"
    known = bool(names) and all(name in CONFIGURATIONS for name in names)
    folders = {configurations / CONFIGURATIONS[name] for name in names} if known else set()
    include = [*sorted(folders), *([folder] if folder else [])]
    with silence():
        return TaskManager(include_path=include, include_defaults=not known)


@contextmanager
def _without_machine_report() -> Iterator[None]:
    """The harness asks git and pip what the machine has, with every result: a second each, and git
    complains where there is no repository. Nothing of it is used here."""
    from lm_eval import evaluator

    names = {"get_git_commit_hash": lambda: None, "add_env_info": lambda results: None}
    before = {name: getattr(evaluator, name) for name in names}
    try:
        vars(evaluator).update(names)
        yield
    finally:
        vars(evaluator).update(before)


def _in(entry: Any, group: Any) -> bool:
    return entry.yaml_path.parent == group.yaml_path.parent


def wrapped(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    batch_size: int,
    answered: Callable[[], None],
) -> Any:
    """The model as the harness takes it.

    Args:
        batch_size: requests in one forward pass.
        answered: called after each answer of the model.

    Raises:
        InputError: the model does not run.
        NumericalError: its logits are NaN.
    """
    from lm_eval.models.huggingface import HFLM

    _require_runs(model)
    with silence():
        lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
    lm.set_cache_hook(_Answers(answered))
    return lm


class _Answers:
    """Stands where the harness would keep answers for later: sees each as it comes."""

    def __init__(self, answered: Callable[[], None]):
        self._answered = answered

    def add_partial(self, kind: str, request: Any, answer: Any) -> None:
        likelihood = answer[0] if kind == "loglikelihood" else 0.0
        if not math.isfinite(likelihood):
            raise NumericalError(
                f"the log-likelihood of an answer to {shown(request[0])} is {likelihood}: the "
                "model's logits are not finite; try --dtype float32"
            )
        self._answered()


@torch.inference_mode()
def _require_runs(model: PreTrainedModel) -> None:
    """One forward pass of a few tokens."""
    try:
        logits = model(torch.arange(4, device=model.device).unsqueeze(0)).logits
    except Exception as cause:
        raise InputError(f"the model does not run ({reason_of(cause)})") from cause
    if bool(logits.isnan().any()):
        raise NumericalError(
            "the model's logits are NaN; try --dtype float32, or look for NaN in the checkpoint"
        )


def result_of(
    said: Mapping[str, Any], name: str, *, limit: int | None, data: str, seconds: float
) -> TaskResult:
    """The scores of a task or group from all that the harness says of it.

    Raises:
        InputError: a group that the harness gives no score of its own.
    """
    values = said.get("groups", {}).get(name) or said["results"].get(name)
    if values is None:
        raise InputError(f"the group {name!r} has no score of its own; name its tasks")
    scores, errors = {}, {}
    for key, value in values.items():
        metric, comma, filtered = key.partition(",")
        if comma and not metric.endswith("_stderr"):
            shown_as = metric if filtered == "none" else key
            error = values.get(f"{metric}_stderr,{filtered}")
            scores[shown_as] = float(value)
            errors[shown_as] = float(error) if isinstance(error, int | float) else None
    shots = {said["n-shot"][leaf] for leaf in said["n-samples"]}
    return TaskResult(
        task=name,
        scores=scores,
        standard_errors=errors,
        documents=sum(count["effective"] for count in said["n-samples"].values()),
        limit=limit,
        shots=shots.pop() if len(shots) == 1 else None,
        version=str(said["versions"].get(name)),
        harness=harness_version(),
        prompts_sha256=_prompts(said["samples"]),
        data=data,
        seconds=seconds,
    )


def _prompts(samples: Mapping[str, Iterable[Mapping[str, Any]]]) -> str:
    from lm_eval.utils import hash_string

    every = (sample for task in samples.values() for sample in task)
    return hash_string("".join(x["prompt_hash"] + x["target_hash"] for x in every))
