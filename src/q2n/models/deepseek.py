"""DeepSeekMoE (model_type `deepseek`), which transformers does not have: DeepSeekMoE-16B.

A LLaMA decoder whose MLP is, after the first dense layers, a mixture (Dai et al. 2024, arXiv
2401.06066): a token runs through `num_experts_per_tok` of `n_routed_experts` experts, weighed by
the softmax over all of them, and through `n_shared_experts` shared ones, kept as one MLP of that
many widths.

Attention, norms, positions and the model's loop are transformers' LLaMA, the fused experts its
DeepSeek-V2, and files have the published names; so everything else treats it as any model.
Importing this module registers it with `AutoConfig` and `AutoModelForCausalLM`.
"""

from typing import Any, no_type_check

import torch
from huggingface_hub.dataclasses import strict
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    LlamaPreTrainedModel,
    initialization,
)
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2Experts
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaMLP

_EPSILON = 1e-20


@no_type_check  # `strict` checks its fields, and takes more than it declares
@strict
class DeepseekConfig(LlamaConfig):
    """config.json of DeepSeekMoE."""

    model_type = "deepseek"
    attribute_map = {"num_experts": "n_routed_experts"}  # noqa: RUF012 - as transformers has it

    moe_intermediate_size: int = 1408
    n_routed_experts: int = 64
    n_shared_experts: int = 2
    num_experts_per_tok: int = 6
    moe_layer_freq: int = 1
    first_k_dense_replace: int = 1
    norm_topk_prob: bool = False
    scoring_func: str = "softmax"

    def validate_architecture(self) -> None:
        """As any LLaMA's; the scores are a softmax."""
        super().validate_architecture()
        if self.scoring_func != "softmax":
            raise ValueError(f"scoring_func is {self.scoring_func!r}, and only softmax is known")

    def has_experts(self, layer: int) -> bool:
        """Whether the MLP of this layer is a mixture."""
        return layer >= self.first_k_dense_replace and layer % self.moe_layer_freq == 0


class DeepseekRouter(nn.Module):
    """Scores of all experts, and the best of each token."""

    def __init__(self, config: DeepseekConfig):
        super().__init__()
        self.top_k, self.normalized = config.num_experts_per_tok, config.norm_topk_prob
        self.weight = nn.Parameter(torch.empty(config.n_routed_experts, config.hidden_size))

    def forward(
        self, rows: Float[Tensor, "tokens hidden"]
    ) -> tuple[Float[Tensor, "tokens k"], Int[Tensor, "tokens k"]]:
        """Weights and numbers of the experts of each token."""
        scores = functional.linear(rows.float(), self.weight.float()).softmax(-1)
        weights, experts = scores.topk(self.top_k, sorted=False)
        if self.normalized:
            weights = weights / (weights.sum(-1, keepdim=True) + _EPSILON)
        return weights.to(rows.dtype), experts


class DeepseekMoE(nn.Module):
    """Routed and shared experts in the place of an MLP."""

    def __init__(self, config: DeepseekConfig):
        super().__init__()
        self.experts = DeepseekV2Experts(config)
        self.gate = DeepseekRouter(config)
        shared = config.n_shared_experts * config.moe_intermediate_size
        self.shared_experts = _mlp(config, shared) if shared else None

    def forward(self, hidden: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch hidden"]:
        rows = hidden.reshape(-1, hidden.shape[-1])
        weights, experts = self.gate(rows)
        routed = self.experts(rows, experts, weights).view(hidden.shape)
        return routed if self.shared_experts is None else routed + self.shared_experts(hidden)


class _Initialized(LlamaPreTrainedModel):
    """Draws new weights for what LLaMA does not have."""

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, DeepseekV2Experts | DeepseekRouter):
            for parameter in module.parameters(recurse=False):
                initialization.normal_(parameter, std=self.config.initializer_range)


class DeepseekModel(_Initialized, LlamaModel):
    """LLaMA's loop over blocks, some of which have experts."""

    config: DeepseekConfig

    def __init__(self, config: DeepseekConfig):
        super().__init__(config)
        for number, block in enumerate(self.layers):
            assert isinstance(block, LlamaDecoderLayer)
            if config.has_experts(number):
                block.mlp = DeepseekMoE(config)  # type: ignore[assignment]
        self.post_init()


class DeepseekForCausalLM(_Initialized, LlamaForCausalLM):
    """DeepSeekMoE with its head."""

    config: DeepseekConfig

    def __init__(self, config: DeepseekConfig):
        super().__init__(config)
        self.model = DeepseekModel(config)
        self.post_init()


def _mlp(config: DeepseekConfig, intermediate: int) -> LlamaMLP:
    sized: Any = LlamaConfig(
        hidden_size=config.hidden_size,
        intermediate_size=intermediate,
        num_attention_heads=config.num_attention_heads,
        hidden_act=config.hidden_act,
        mlp_bias=config.mlp_bias,
    )
    return LlamaMLP(sized)


def _register() -> None:
    AutoConfig.register(DeepseekConfig.model_type, DeepseekConfig)
    AutoModelForCausalLM.register(DeepseekConfig, DeepseekForCausalLM)
    rules = get_checkpoint_conversion_mapping("qwen2_moe")  # experts one by one in the files
    register_checkpoint_conversion_mapping(DeepseekConfig.model_type, rules)


_register()
