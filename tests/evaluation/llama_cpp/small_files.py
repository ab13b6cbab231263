"""Small base files."""

import torch

from q2n.evaluation.llama_cpp.base_file import BaseFile, write_base


def random_tokens(chunks=2, n_ctx=12, words=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(words, (chunks, n_ctx), generator=generator)


def random_model(words=7, spread=3.0, seed=0):
    """Logits that depend on the token before and on nothing else, whole chunks at once."""
    table = spread * torch.randn(words, words, generator=torch.Generator().manual_seed(seed))
    return lambda tokens: [table[tokens[len(tokens) // 2 : -1]]]


def in_pieces(model, size):
    return lambda tokens: (piece for whole in model(tokens) for piece in whole.split(size))


def small_file(path, words=7, seed=0, **shape):
    tokens = random_tokens(words=words, **shape)
    write_base(path, tokens, words, random_model(words, seed=seed))
    return BaseFile.open(path)
