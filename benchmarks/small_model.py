"""A small model whose widths are multiples of 256, trained for an hour at most: for K types.

ggml's K types cut rows into super-blocks of 256 columns, and the small models that are at hand are
576 or 640 wide. This one is a llama of 4 blocks (512 wide, feed-forward 1536) with 4096 words of
bytes, trained on the train text with Adam. It is no good model; but its weights are trained and its
predictions are far better than chance, so that what a type costs is measured on real directions.

    python benchmarks/small_model.py --text wiki.train.head.raw --output small-512
"""

import argparse
import math
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS, END = 4096, "<|endoftext|>"


def main() -> None:
    options = parse_options()
    torch.manual_seed(options.seed)
    text = options.text.read_text(encoding="utf-8")
    tokenizer = trained_tokenizer(text)
    tokens = torch.tensor(tokenizer(text).input_ids)
    print(f"{len(tokens):,} tokens")
    model = new_model(options.length)
    train(model, tokens, options)
    model.save_pretrained(options.output)
    tokenizer.save_pretrained(options.output)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def trained_tokenizer(text: str) -> PreTrainedTokenizerFast:
    """Pairs of bytes, cut as GPT-2 does."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=WORDS, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(text.splitlines(keepends=True), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END, eos_token=END)


def new_model(length: int) -> LlamaForCausalLM:
    """With weights at random."""
    config = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=length,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    )
    return LlamaForCausalLM(config)


def train(model: LlamaForCausalLM, tokens: torch.Tensor, options: argparse.Namespace) -> None:
    """Adam on windows at random places; the rate rises for 50 steps and falls as a cosine."""
    optimizer = torch.optim.AdamW(model.parameters(), options.rate, (0.9, 0.95), weight_decay=0.1)
    start = time.monotonic()
    for step in range(options.steps):
        rate = min(1, (step + 1) / 50) * (1 + math.cos(math.pi * step / options.steps)) / 2
        for group in optimizer.param_groups:
            group["lr"] = options.rate * rate
        places = torch.randint(len(tokens) - options.length, (options.batch,)).tolist()
        batch = torch.stack([tokens[place : place + options.length] for place in places])
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 20 == 19:
            print(f"step {step + 1}: {loss:.3f}, {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
