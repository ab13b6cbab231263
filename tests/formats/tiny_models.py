"""Tiny random models, and random layers on a uniform grid to replace their linears."""

from copy import deepcopy
from dataclasses import replace

import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, Qwen2Config

from q2n.formats.format import Format
from q2n.formats.hf_folder import HFFolder
from q2n.layers.uniform import UniformLinear

PROMPT = torch.tensor([[5, 17, 99, 3]])


def llama(
    hidden: int = 64, inner: int = 96, tied: bool = False, dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=128,
        tie_word_embeddings=tied,
        initializer_range=0.2,
    )
    return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def qwen2(dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    torch.manual_seed(1)
    config = Qwen2Config(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=128,
        tie_word_embeddings=True,
        initializer_range=0.2,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter)
    return model.eval()


def random_layer(
    shape: tuple[int, int],
    bits: int,
    group_size: int,
    symmetric: bool,
    dtype: torch.dtype,
    seed: int = 0,
) -> UniformLinear:
    """Every code and every zero point occurs; weights of a plausible size."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = shape
    size = columns if group_size == -1 else group_size
    groups = -(-columns // size)
    top = 2**bits - 1
    zero = torch.randint(0, top + 1, (rows, groups), dtype=torch.uint8, generator=generator)
    scale = (0.5 + torch.rand(rows, groups, generator=generator)) * 0.4 / top
    return UniformLinear(
        codes=torch.randint(0, top + 1, shape, dtype=torch.uint8, generator=generator),
        scale=scale.to(dtype),
        zero=torch.full_like(zero, 2 ** (bits - 1)) if symmetric else zero,
        bits=bits,
        group_size=size,
        symmetric=symmetric,
    )


def random_layers(
    model: PreTrainedModel, bits: int, group_size: int, symmetric: bool, dtype: torch.dtype
) -> dict[str, UniformLinear]:
    """One for every linear of the decoder blocks, scales in `dtype`."""
    names = [n for n, m in model.model.named_modules(prefix="model") if isinstance(m, nn.Linear)]
    return {
        name: random_layer(
            tuple(model.get_submodule(name).weight.shape), bits, group_size, symmetric, dtype, seed
        )
        for seed, name in enumerate(names)
    }


def quantized_in_memory(
    model: PreTrainedModel, layers: dict[str, UniformLinear]
) -> PreTrainedModel:
    """The model with our own dequantized weights, rounded to its dtype."""
    model = deepcopy(model)
    for name, layer in layers.items():
        model.get_submodule(name).weight.data = layer.dequantize().to(model.dtype)
    return model


def greedy(model: PreTrainedModel) -> list[int]:
    """Eight tokens of greedy text, computed in float32: half precision is slow on CPUs."""
    with torch.no_grad():
        out = model.float().generate(PROMPT, max_new_tokens=8, do_sample=False, pad_token_id=0)
    return out[0].tolist()


def assert_same_model(loaded: PreTrainedModel, expected: PreTrainedModel) -> None:
    """Every parameter equal, bit for bit, and the same greedy text."""
    found = dict(loaded.state_dict())
    for name, parameter in expected.state_dict().items():
        assert torch.equal(found[name], parameter), name
    assert greedy(loaded) == greedy(expected)


def in_shards(format: Format, shard_bytes: int) -> Format:
    """The format with small files."""
    assert isinstance(format.container, HFFolder)
    return replace(format, container=replace(format.container, shard_bytes=shard_bytes))
