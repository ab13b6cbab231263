"""Small base files."""

import torch

from q2n.evaluation.llama_cpp.base_file import BaseFile, write_base


def random_tokens(chunks=2, n_ctx=12, words=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(words, (chunks, n_ctx), generator=generator)


def random_model(words=7, spread=3.0, seed=0):
    """Logits that depend on the token before and on nothing else; one piece a chunk."""
    table = spread * torch.randn(words, words, generator=torch.Generator().manual_seed(seed))
    return lambda tokens: ([table[chunk[len(chunk) // 2 : -1]]] for chunk in tokens)


def changed(model, change):
    """The same model with other logits: `change(logits, number of the chunk)`."""
    return lambda tokens: ([change(x, i)] for i, (x,) in enumerate(model(tokens)))


def in_pieces(model, size):
    return lambda tokens: (logits.split(size) for (logits,) in model(tokens))


def small_file(path, words=7, seed=0, **shape):
    tokens = random_tokens(words=words, **shape)
    write_base(path, tokens, words, random_model(words, seed=seed)(tokens))
    return BaseFile.open(path)
