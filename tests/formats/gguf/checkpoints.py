"""Tiny checkpoints with tokenizers that llama.cpp has."""

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path

import torch
from jaxtyping import Float
from mixtures import tiny_mixture
from tiny import tiny_model, tiny_text
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from q2n.block_types import BLOCK_TYPES, BlockTypeName
from q2n.formats import FORMATS
from q2n.formats.format import Format
from q2n.grids.fitted import block_grid
from q2n.layers.blocks import BlockLinear, BlockStorage
from q2n.models.experts import one_by_one

VOCABULARY = 384
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
SMOLLM = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
ODD_TEXTS = (
    "the law of null space",
    "theory layered nulls outlawed hero gridlock zero erroring deride inutile",
    "  two  blanks,\ttabs\n\nand lines \n \n",
    "3 33 333 3333 1.5e-3 it's I'VE we'll",
    "naïve Ünïcode 我想 🦙🦙 ------======= нещо",
    "</s>code<s> grid</s>\n",
    "a",
    "",
    " blank first",
)
LAYERS = BlockStorage(block_type="q4_0")
"""What a method stores."""
CONFIGS: Mapping[str, dict] = {
    "llama": {},
    "mistral": {},
    "qwen2": {},
    "qwen3": {"head_dim": 32},
    "gemma2": {"query_pre_attn_scalar": 32, "head_dim": 32, "sliding_window": 8},
    "gemma3_text": {"query_pre_attn_scalar": 16, "sliding_window": 8, "layers": 7},
    "phi3": {},
}
"""What each tiny model has of its own."""
MIXTURES: Mapping[str, dict] = {
    "mixtral": {},
    "qwen2_moe": {"shared_expert_intermediate_size": 64},
    "qwen3_moe": {"head_dim": 32, "norm_topk_prob": True},
    "olmoe": {},
    "deepseek": {"layers": 3},
    "deepseek_v2": {"layers": 3, "v_head_dim": 32},
}
"""The same of those with experts."""


def byte_level(parts: list | None = None, **model) -> Tokenizer:
    """A tokenizer of bytes."""
    tokenizer = Tokenizer(models.BPE(**model))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(SMOLLM if parts is None else parts)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(
        vocab_size=VOCABULARY - 4, special_tokens=list(SPECIAL), initial_alphabet=alphabet
    )
    tokenizer.train_from_iterator([tiny_text(50)], trainer)
    return tokenizer


def of_letters(normalizer: normalizers.Normalizer | None = None) -> Tokenizer:
    """A tokenizer as sentencepiece makes them: all ways to make a word, by the word's rank."""
    words = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    letters = sorted({*tiny_text(50), "▁", "\n", "'", "I"} - {" "})
    made = sorted(_pieces(tiny_text(50).replace(" ", "▁")), key=lambda x: (len(x), x))
    words += letters + made[: VOCABULARY - 8 - len(words) - len(letters)]
    vocab = {word: number for number, word in enumerate(words)}
    merges = [
        (word[:at], word[at:])
        for word in words
        for at in range(1, len(word))
        if word[:at] in vocab and word[at:] in vocab and not word.startswith("<")
    ]
    tokenizer = Tokenizer(
        models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    tokenizer.normalizer = normalizer or normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.add_tokens([AddedToken("grid grid", normalized=True)])
    return tokenizer


def _pieces(text: str) -> set[str]:
    """Frequent pieces of a text that are made of two others."""
    found = {text[i : i + n] for n in (2, 3) for i in range(0, 400)}
    return {piece for piece in found if "▁" not in piece[1:]}


def with_bos(tokenizer: Tokenizer) -> Tokenizer:
    """The same, which puts <s> before a text."""
    tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return tokenizer


def fast(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """As transformers has it."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
    )


def save(
    folder: Path,
    architecture: str = "llama",
    tokenizer: Tokenizer | None = None,
    dtype: torch.dtype = torch.float32,
    **options,
) -> PreTrainedModel:
    """A tiny model with a tokenizer, saved to a folder; norms and biases are not all alike."""
    options = {"layers": 2, **{**CONFIGS, **MIXTURES}[architecture], **options}
    make = tiny_mixture if architecture in MIXTURES else tiny_model
    model = make(architecture, vocab_size=VOCABULARY, **options)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, std=0.3)
            if name.endswith("norm.weight") and "gemma" not in architecture:
                parameter.data += 1
    model = model.to(dtype)
    model.save_pretrained(folder)
    fast(tokenizer or byte_level()).save_pretrained(folder)
    return model


def rotary(**entries) -> dict:
    """The option of a scaled position embedding."""
    return {"rope_parameters": {"rope_theta": 10000.0, **entries}}


def gguf_format(outside: str = "f32") -> Format:
    """The format, embeddings and head in a type of this name."""
    return FORMATS["gguf"].storing_outside(outside)


def in_blocks(model: PreTrainedModel, name: BlockTypeName) -> dict[str, BlockLinear]:
    """Every linear of the decoder rounded to blocks of a type, of every expert too."""
    return {
        path: rounded(module.weight.detach().float(), name)
        for path, module in one_by_one(deepcopy(model)).model.named_modules(prefix="model")
        if isinstance(module, nn.Linear) and module.out_features > 1
    }


def rounded(weight: Float[Tensor, "out in"], name: BlockTypeName) -> BlockLinear:
    """A weight in blocks."""
    return block_grid(BLOCK_TYPES[name], weight, None, name).nearest()
