"""Mixtures of experts in a GGUF file.

Of the experts of a layer all matrices of one kind are one tensor [experts, out, in], expert after
expert, rows of one type: `blk.3.ffn_up_exps.weight` is a *stack* of the model's
`layers.3.mlp.experts.0.up_proj`, `..experts.1.up_proj`, ...

How a router's numbers become weights is a matter of llama.cpp's name of the architecture: the
softmax over all experts, the greatest few of it, and whether these are divided by their sum
(`build_moe_ffn` in src/llama-graph.cpp and its calls in src/models/*.cpp).
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gguf import ExpertGatingFuncType, GGUFWriter

from q2n.errors import InputError
from q2n.patterns import listed

_AT_MOST = 1024  # LLAMA_MAX_EXPERTS of src/llama-hparams.h
_MIDDLE = ".experts."


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """What llama.cpp fixes of the mixtures of one family."""

    normalized: bool
    """Whether the weights of a token's experts are divided by their sum."""
    width: str = "intermediate_size"
    """The entry of config.json that says how wide an expert is."""
    shared_width: str | None = None
    """The one that says how wide the shared expert is, if there is one with a gate."""
    first_dense: bool = False
    """Whether the file says how many of the first layers have no experts, how many shared experts
    the others have, and what weights are multiplied with."""


def stack_of(name: str) -> str | None:
    """What a stack is called that holds a tensor of an expert, in the manner of the model's names:
    "..experts.3.up_proj.weight" is in "..experts.up_proj.weight". None: it is of no expert."""
    before, _, after = name.rpartition(_MIDDLE)
    number, _, rest = after.partition(".")
    return f"{before}{_MIDDLE}{rest}" if before and number.isdigit() else None


def held_together(keys: Mapping[str, str]) -> dict[str, list[str]]:
    """Name in the file -> names in the model of what it holds, from the inverse; those of a stack
    in the order of `keys`, which is that of the experts."""
    found: dict[str, list[str]] = {}
    for name, key in keys.items():
        found.setdefault(key, []).append(name)
    return found


def require_whole_stacks(members: Mapping[str, Sequence[str]], left: Collection[str]) -> None:
    """Refuse a stack of which some matrices are quantized and others stay as they are.

    Args:
        members: as `held_together` gives them.
        left: names in the model of what stays.

    Raises:
        InputError: naming one of each.
    """
    for names in members.values():
        stay = [name for name in names if name in left]
        if stay and len(stay) < len(names):
            taken = next(name for name in names if name not in left)
            pattern = f"*.experts.*.{stay[0].split('.')[-2]}"
            raise InputError(
                f"a GGUF file holds the experts of a layer in one type, and {stay[0]!r} would stay "
                f"as it is beside {taken!r}, which is quantized; leave out all of them (--ignore "
                f"'{pattern}') or none, or use another --format"
            )


def mixture_problem(mixture: Mixture | None, config: Any) -> str | None:
    """What llama.cpp would compute otherwise, or None."""
    names = [x for x in ("num_experts", "num_local_experts") if getattr(config, x, None)]
    if mixture is None:
        return f"it has experts ({listed(names)}), and there are none" if names else None
    count = config.num_experts
    if not 1 < count <= _AT_MOST:
        return f"it has {count} experts in a layer, and there are 2 to {_AT_MOST}"
    normalized = getattr(config, "norm_topk_prob", None)
    if normalized is not None and normalized != mixture.normalized:
        return f"norm_topk_prob is {normalized}, and there it is {mixture.normalized}"
    if mixture.first_dense and not config.n_shared_experts:
        return "it has no shared experts"
    if (period := getattr(config, "moe_layer_freq", 1)) != 1:
        return f"moe_layer_freq is {period}, and there all layers but the first ones have experts"
    return _groups(config)


def _groups(config: Any) -> str | None:
    """Of groups llama.cpp adds the two best experts, DeepSeek-V2 takes the best one."""
    groups, used = getattr(config, "n_group", None), getattr(config, "topk_group", None)
    if getattr(config, "topk_method", "greedy") == "greedy" or groups == used:
        return None
    return f"experts are chosen from {used} of {groups} groups, and there from all"


def add_mixture(writer: GGUFWriter, mixture: Mixture, config: Any) -> None:
    """Write the entries of a configuration that has no `mixture_problem`."""
    writer.add_expert_count(config.num_experts)
    writer.add_expert_used_count(config.num_experts_per_tok)
    if mixture.width != "intermediate_size":
        writer.add_expert_feed_forward_length(getattr(config, mixture.width))
    if mixture.shared_width is not None:
        writer.add_expert_shared_feed_forward_length(getattr(config, mixture.shared_width))
    if mixture.first_dense:
        writer.add_expert_gating_func(ExpertGatingFuncType.SOFTMAX)
        writer.add_expert_weights_norm(mixture.normalized)
        writer.add_expert_weights_scale(getattr(config, "routed_scaling_factor", 1.0))
        writer.add_expert_shared_count(config.n_shared_experts)
        writer.add_leading_dense_block_count(config.first_k_dense_replace)
