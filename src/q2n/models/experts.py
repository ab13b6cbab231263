"""The experts of a mixture, one by one.

transformers 5 keeps the experts of a block in two 3-D parameters, `gate_up_proj` [experts, 2 x
intermediate, hidden] and `down_proj` [experts, hidden, intermediate], in modules of classes that
`use_experts_implementation` decorates. Here each matrix becomes an `nn.Linear` of its own, a view
of the fused parameter where that is in memory:

    mlp.experts.gate_up_proj   ->  mlp.experts.3.gate_proj.weight, mlp.experts.3.up_proj.weight, ..
    mlp.experts.down_proj      ->  mlp.experts.3.down_proj.weight, ..

so that whatever quantizes, refits, stores or packs a linear does so with an expert's.

A token runs through the few experts that its router chose. Experts are taken in groups, and all of
a group compute what they hand to `down_proj` before any of them goes on. So there are two stages
in a group, and within a stage no matrix depends on another: a watcher that gathers statistics
sees the inputs of a whole stage before anything of it is computed (`Watcher`).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Protocol, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from q2n.models.expert_parts import ExpertPart, expert_parts, is_fused, parts_by_parameter

Model = TypeVar("Model", bound=nn.Module)

LAST = "down_proj"
"""The linear of an expert whose outputs are added up over the experts."""


@dataclass(frozen=True)
class Stage:
    """What can be measured at one time: matrices of a group of experts that read what is there
    before any of them is computed."""

    first: int
    """The first expert of the group."""
    down: bool
    """Whether it is `down_proj` that reads, or what comes before it."""


@dataclass(frozen=True)
class Wanted:
    """Tokens of which a watcher wants the inputs of one expert, routed to it or not."""

    tokens: Int[Tensor, " rows"]
    factor: Float[Tensor, " rows"] | None
    """What their inputs are multiplied with, in float32; None leaves them as they are."""


class Watcher(Protocol):
    """Looks on while experts run."""

    def wanted(
        self, experts: "OneByOne", routed: Sequence[Int[Tensor, " _"]], count: int
    ) -> Sequence[Wanted] | None:
        """For each expert, given the tokens routed to each of `count`; None for none at all."""

    def ready(
        self, experts: "OneByOne", stage: Stage, inputs: Mapping[int, Callable[[], Tensor]]
    ) -> None:
        """The inputs of a stage, by expert, before anything of the stage is computed."""


@dataclass(frozen=True)
class _Visit:
    """The tokens that run through one expert. Rows are those of `tokens`."""

    expert: int
    tokens: Int[Tensor, " rows"]
    routed: Int[Tensor, " own"]
    """Rows of tokens that the router sent here."""
    slot: Int[Tensor, " own"]
    """The place of the expert among those of each of these tokens."""
    wanted: Int[Tensor, " seen"] | None
    factor: Float[Tensor, " seen"] | None


class OneByOne(nn.Module):
    """Stands before a class of fused experts in the bases of what replaces it: attributes, gating
    and activation remain that class's own."""

    num_experts: int
    group_size: int
    """Experts that are taken together."""
    watcher: Watcher | None
    _apply_gate: Callable[[Tensor], Tensor]
    act_fn: Callable[[Tensor], Tensor]
    has_gate: bool
    is_concatenated: bool
    has_post_expert_norm: bool
    post_expert_norm: nn.Module

    def forward(
        self,
        hidden_states: Float[Tensor, "tokens hidden"],
        top_k_index: Int[Tensor, "tokens k"],
        top_k_weights: Float[Tensor, "tokens k"],
    ) -> Float[Tensor, "tokens hidden"]:
        """The sum over the `k` experts of each token, times its weights."""
        output = torch.zeros_like(hidden_states)
        visits = self._visits(top_k_index)
        for first in range(0, self.num_experts, self.group_size):
            group = visits[first : first + self.group_size]
            self._show(Stage(first, False), group, lambda v: hidden_states[v.tokens])
            hidden = {v.expert: self._before_down(v.expert, hidden_states[v.tokens]) for v in group}
            self._show(Stage(first, True), group, partial(_at_expert, hidden))
            for visit in group:
                tokens = visit.tokens[visit.routed]
                if len(tokens):
                    down = self._down(visit.expert, hidden[visit.expert][visit.routed])
                    down = down * top_k_weights[tokens, visit.slot, None]
                    output.index_add_(0, tokens, down.to(output.dtype))
        return output

    def _visits(self, top_k_index: Int[Tensor, "tokens k"]) -> list[_Visit]:
        found = [torch.where(top_k_index == expert) for expert in range(self.num_experts)]
        wanted: Sequence[Wanted] | None = None
        if self.watcher is not None:
            wanted = self.watcher.wanted(self, [tokens for tokens, _ in found], len(top_k_index))
        if wanted is None:
            return [_alone(expert, tokens, slot) for expert, (tokens, slot) in enumerate(found)]
        return [
            _beside(expert, tokens, slot, also)
            for expert, ((tokens, slot), also) in enumerate(zip(found, wanted, strict=True))
        ]

    def _show(
        self, stage: Stage, visits: Sequence[_Visit], rows: Callable[[_Visit], Tensor]
    ) -> None:
        """Let the watcher see the inputs of a stage, each gathered when it is asked for."""
        if self.watcher is not None and visits[0].wanted is not None:
            seen = [v for v in visits if v.wanted is not None and len(v.wanted)]
            self.watcher.ready(self, stage, {v.expert: partial(_seen, v, rows) for v in seen})

    def _before_down(
        self, expert: int, rows: Float[Tensor, "rows hidden"]
    ) -> Float[Tensor, "rows intermediate"]:
        up = self.get_submodule(f"{expert}.up_proj")(rows)
        if not self.has_gate:
            return self.act_fn(up)
        gate = self.get_submodule(f"{expert}.gate_proj")(rows)
        if self.is_concatenated:
            return self._apply_gate(torch.cat((gate, up), -1))
        return self._apply_gate(torch.stack((gate, up), -1).flatten(-2))

    def _down(
        self, expert: int, rows: Float[Tensor, "rows intermediate"]
    ) -> Float[Tensor, "rows hidden"]:
        down = self.get_submodule(f"{expert}.{LAST}")(rows)
        return self.post_expert_norm(down) if self.has_post_expert_norm else down


def _at_expert(rows: Mapping[int, Tensor], visit: _Visit) -> Tensor:
    return rows[visit.expert]


def _alone(expert: int, tokens: Int[Tensor, " own"], slot: Int[Tensor, " own"]) -> _Visit:
    return _Visit(expert, tokens, torch.arange(len(tokens), device=tokens.device), slot, None, None)


def _beside(
    expert: int, tokens: Int[Tensor, " own"], slot: Int[Tensor, " own"], also: Wanted
) -> _Visit:
    """A token that is both routed and wanted is computed once."""
    every, rows = torch.unique(torch.cat((tokens, also.tokens)), return_inverse=True)
    own = len(tokens)
    return _Visit(expert, every, rows[:own], slot, rows[own:], also.factor)


def _seen(visit: _Visit, rows: Callable[[_Visit], Tensor]) -> Float[Tensor, "seen width"]:
    """What a watcher gets of the rows of a visit."""
    assert visit.wanted is not None
    wanted = rows(visit)[visit.wanted]
    return wanted if visit.factor is None else wanted.float() * visit.factor[:, None]


def one_by_one(model: Model) -> Model:
    """The same model, its fused experts replaced by single linears. Tensors are shared, never
    copied; on the meta device too. Experts of another layout stay as they are.
    """
    for module in list(model.modules()):
        if is_fused(module):
            _replace(module)
    return model


def _replace(module: nn.Module) -> None:
    """Change the class of a module of fused experts, its parameters for those of linears."""
    parts = expert_parts(module)
    fused = {part.parameter: module.get_parameter(part.parameter) for part in parts.values()}
    for name in fused:
        delattr(module, name)
    for name, part in parts.items():
        matrix = part.cut(fused[part.parameter])
        linear = _linear(module, name.rpartition(".")[0], matrix)
        setattr(linear, name.rpartition(".")[2], nn.Parameter(matrix, requires_grad=False))
    changed: Any = module
    changed.__class__ = _replacement(type(module))  # type: ignore[arg-type] # it hashes
    changed.group_size, changed.watcher = changed.num_experts, None
    changed._is_hf_initialized = True  # transformers would initialize the fused parameters


def _linear(module: nn.Module, name: str, matrix: Tensor) -> nn.Module:
    """The linear of this name ("3.up_proj"), made at its first tensor, which is the weight."""
    expert, _, projection = name.partition(".")
    if expert not in module._modules:
        module.add_module(expert, nn.Module())
    parent = module.get_submodule(expert)
    if projection not in parent._modules:
        rows, columns = matrix.shape
        parent.add_module(projection, nn.Linear(columns, rows, bias=False, device="meta"))
    return parent.get_submodule(projection)


@cache
def _replacement(kind: type[nn.Module]) -> type[nn.Module]:
    return type(f"{kind.__name__}OneByOne", (OneByOne, kind), {})


def experts_in(root: nn.Module) -> Iterator[tuple[str, OneByOne]]:
    """Every mixture's experts in a block or model, with their names."""
    yield from ((n, m) for n, m in root.named_modules() if isinstance(m, OneByOne))


def taken_apart(root: nn.Module) -> dict[str, dict[str, ExpertPart]]:
    """Name of a parameter that transformers' own model has in the place of single experts -> the
    full names of the tensors in it, and where each lies."""
    return parts_by_parameter(experts_in(root))


def readers(experts: OneByOne, name: str, expert: int, stage: Stage) -> list[str]:
    """Names of the linears of one expert that read their input at a stage; `name` is that of the
    experts."""
    projections = (LAST,) if stage.down else ("gate_proj", "up_proj")[not experts.has_gate :]
    return [f"{name}.{expert}.{projection}" for projection in projections]


def routers(root: nn.Module) -> set[str]:
    """Names of modules that choose among experts: beside a mixture's experts, with a row of their
    weight for each of them."""
    found = set[str]()
    for name, experts in experts_in(root):
        prefix = name.rpartition(".")[0]
        for other, module in root.get_submodule(prefix).named_children():
            weight = getattr(module, "weight", None)
            if isinstance(weight, Tensor) and weight.shape[:1] == (experts.num_experts,):
                found.add(f"{prefix}.{other}".lstrip("."))
    return found
