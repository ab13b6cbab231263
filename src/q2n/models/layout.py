"""Where a decoder of LLaMA's kind keeps what a rotation touches.

That kind (LLaMA, Mistral, Qwen2, Qwen3, ..): a block is two residual branches, each RMSNorm then
attention (q, k, v, o, with norms of queries and keys head by head or without) or a gated MLP (gate,
up, down). It is recognised by what is there, not by the model's name: every parameter of a block
must have a known part in it, and the norms are tried out, for a weight that enters as 1 + g or a
mean that is subtracted would not survive a rotation.
"""

from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from q2n.errors import InputError
from q2n.models.auto_classes import has_towers
from q2n.models.block_list import find_blocks
from q2n.models.targets import targets_in
from q2n.transforms.decoder import DecoderSizes

ATTENTION, OUTPUT, DOWN, VALUE = (
    "self_attn",
    "self_attn.o_proj",
    "mlp.down_proj",
    "self_attn.v_proj",
)
NORM_OF = {
    "self_attn.q_proj": "input_layernorm",
    "self_attn.k_proj": "input_layernorm",
    VALUE: "input_layernorm",
    "mlp.gate_proj": "post_attention_layernorm",
    "mlp.up_proj": "post_attention_layernorm",
}
"""Linears that read the residual stream -> the norm between."""
LINEARS = (*NORM_OF, OUTPUT, DOWN)
NORMS = tuple(dict.fromkeys(NORM_OF.values()))
HEAD_NORMS = ("self_attn.q_norm", "self_attn.k_norm")
"""Norms inside a head, which no rotation reaches."""


@dataclass(frozen=True, kw_only=True)
class DecoderLayout:
    """Names of modules and the widths between them."""

    embeddings: str
    head: str
    last_norm: str
    blocks: str
    """Of the list of blocks."""
    count: int
    sizes: DecoderSizes

    def everywhere(self, name: str) -> str:
        """Pattern of a module's name in all blocks."""
        return f"{self.blocks}.*.{name}"


def find_layout(model: PreTrainedModel) -> DecoderLayout:
    """The layout of a model's modules (weights may be on the meta device).

    Raises:
        InputError: it is not a decoder of this kind; the message says what differs.
    """
    if has_towers(model):
        raise InputError(
            f"{type(model).__name__} cannot be rotated: what it makes of images or sound enters "
            "its hidden states through a projector, which would have to be rotated too; leave out "
            "the rotation"
        )
    list_name, blocks = find_blocks(model)
    named = {id(module): name for name, module in model.named_modules()}
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    if head is None:
        raise InputError(f"{type(model).__name__} cannot be rotated: it has no output head")
    outside = {
        name.rpartition(".")[0]
        for name, _ in model.named_parameters(remove_duplicate=False)
        if not name.startswith(f"{list_name}.")
    } - {named[id(embeddings)], named[id(head)]}
    if len(outside) != 1 or getattr(head, "bias", None) is not None:
        raise _unlike(model, f"outside its blocks it has {', '.join(sorted(outside)) or 'no norm'}")
    last_norm = outside.pop()
    for block in blocks:
        _require_known(model, block)
    norms = [model.get_submodule(last_norm)]
    norms += [block.get_submodule(name) for block in blocks for name in NORMS]
    for norm in norms:
        _require_plain_norm(model, norm)
    return DecoderLayout(
        embeddings=named[id(embeddings)],
        head=named[id(head)],
        last_norm=last_norm,
        blocks=list_name,
        count=len(blocks),
        sizes=_sizes(model, blocks[0]),
    )


def _sizes(model: PreTrainedModel, block: nn.Module) -> DecoderSizes:
    targets = targets_in(block)
    mixed, values = targets[OUTPUT].shape[1], targets[VALUE].shape[0]
    hidden, intermediate = targets[DOWN].shape
    head_dim = getattr(block.get_submodule(ATTENTION), "head_dim", None)
    if not head_dim or mixed % head_dim or values % head_dim:
        raise _unlike(
            model,
            f"heads of {head_dim} channels do not divide the {mixed} inputs of {OUTPUT} and the "
            f"{values} outputs of {VALUE}",
        )
    return DecoderSizes(
        hidden=hidden, heads=mixed // head_dim, head_dim=head_dim, intermediate=intermediate
    )


def _require_known(model: PreTrainedModel, block: nn.Module) -> None:
    """Every parameter of the block is a weight or a bias whose part is known."""
    weights = {*LINEARS, *NORMS}
    known = {f"{name}.weight" for name in (*weights, *HEAD_NORMS)}
    known |= {f"{name}.bias" for name in LINEARS}
    parameters = {name for name, _ in block.named_parameters()}
    if parameters - known:
        raise _unlike(model, f"its blocks have {min(parameters - known)}")
    missing = {f"{name}.weight" for name in weights} - parameters
    if missing:
        raise _unlike(model, f"its blocks have no {min(missing)}")


def _require_plain_norm(model: PreTrainedModel, norm: nn.Module) -> None:
    """The norm gives `weight * x / rms(x)`: tried out with values far above its epsilon."""
    tried = deepcopy(norm)
    generator = torch.Generator().manual_seed(0)
    width = norm.get_parameter("weight").shape[0]
    norm_weight, x = torch.randn(2, width, generator=generator).unbind()
    tried.weight = nn.Parameter(norm_weight)
    x = 10 * x + 1
    expected = norm_weight * x / x.square().mean().sqrt()
    if not torch.allclose(tried(x.unsqueeze(0))[0].float(), expected, rtol=1e-3, atol=1e-3):
        raise _unlike(model, f"its {type(norm).__name__} is not norm weight * x / rms(x)")


def _unlike(model: PreTrainedModel, what: str) -> InputError:
    return InputError(
        f"{type(model).__name__} cannot be rotated, nor its cache be rounded: {what}; "
        "decoders with RMSNorm and q, k, v, o, gate, up, down projections can (LLaMA, Mistral, "
        "Qwen2, Qwen3)"
    )
