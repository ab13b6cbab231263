"""The real llama.cpp, where it is installed: logits, tokens and greedy text of a GGUF file.

The wheel of xllamacpp exports llama.cpp's C functions; llama-cpp-py-sync has their declarations for
cffi. Structures are those of a neighbouring build, so that a few of their defaults are looked at
before anything is run.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.metadata import PackageNotFoundError, files
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import numpy as np
import pytest

REASON = "needs llama.cpp: pip install xllamacpp cffi; pip install --no-deps llama-cpp-py-sync"


def _installed() -> bool:
    try:
        return bool(files("xllamacpp") and files("llama-cpp-py-sync") and find_spec("cffi"))
    except PackageNotFoundError:
        return False


needs_llama_cpp = pytest.mark.skipif(not _installed(), reason=REASON)
"""Of tests that run it."""


def logits(gguf: Path, tokens: Sequence[int]) -> np.ndarray:
    """After each of the tokens: float32 [tokens, vocabulary]."""
    with _model(gguf) as (ffi, lib, model):
        return _decoded(ffi, lib, model, list(tokens))


def greedy(gguf: Path, prompt: Sequence[int], count: int) -> list[int]:
    """The prompt and `count` tokens after it, each the most probable one."""
    tokens = list(prompt)
    with _model(gguf) as (ffi, lib, model):
        for _ in range(count):
            tokens.append(int(_decoded(ffi, lib, model, tokens)[-1].argmax()))
    return tokens


def tokenize(gguf: Path, text: str, *, add_special: bool = True) -> list[int]:
    """The tokens of a text; special tokens are read where their names stand in it."""
    return tokenize_all(gguf, [text], add_special=add_special)[0]


def tokenize_all(gguf: Path, texts: Sequence[str], *, add_special: bool = True) -> list[list[int]]:
    """`tokenize` of each text."""
    with _model(gguf, vocab_only=True) as (ffi, lib, model):
        vocab = lib.llama_model_get_vocab(model)
        return [_tokens(ffi, lib, vocab, text.encode(), add_special) for text in texts]


def _tokens(ffi: Any, lib: Any, vocab: Any, text: bytes, add_special: bool) -> list[int]:
    room = ffi.new("llama_token[]", len(text) + 8)
    count = lib.llama_tokenize(vocab, text, len(text), room, len(room), add_special, True)
    assert count >= 0
    return list(room[0:count])


def _decoded(ffi: Any, lib: Any, model: Any, tokens: list[int]) -> np.ndarray:
    params = lib.llama_context_default_params()
    assert (params.n_batch, params.n_threads) == (2048, 4), "other structures than declared"
    params.n_ctx = params.n_batch = params.n_ubatch = max(len(tokens), 32)
    params.n_threads = params.n_threads_batch = 1
    params.flash_attn_type = 0
    params.type_k = params.type_v = 0  # F32: what is compared are the weights
    context = lib.llama_init_from_model(model, params)
    assert context != ffi.NULL
    try:
        return _run(ffi, lib, model, context, tokens)
    finally:
        lib.llama_free(context)


def _run(ffi: Any, lib: Any, model: Any, context: Any, tokens: list[int]) -> np.ndarray:
    count = len(tokens)
    batch = lib.llama_batch_init(count, 0, 1)
    batch.n_tokens = count
    for place, token in enumerate(tokens):
        batch.token[place], batch.pos[place], batch.logits[place] = token, place, 1
        batch.n_seq_id[place], batch.seq_id[place][0] = 1, 0
    assert lib.llama_decode(context, batch) == 0
    lib.llama_batch_free(batch)
    words = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
    out = np.empty((count, words), np.float32)
    for place in range(count):
        row = lib.llama_get_logits_ith(context, place)
        out[place] = np.frombuffer(ffi.buffer(row, 4 * words), np.float32)
    return out


@contextmanager
def _model(gguf: Path, *, vocab_only: bool = False) -> Iterator[tuple[Any, Any, Any]]:
    ffi, lib = _library()
    params = lib.llama_model_default_params()
    params.n_gpu_layers, params.vocab_only = 0, vocab_only
    model = lib.llama_model_load_from_file(str(gguf).encode(), params)
    if model == ffi.NULL:
        raise RuntimeError(f"llama.cpp does not load {gguf}: {_log.text()}")
    try:
        yield ffi, lib, model
    finally:
        lib.llama_model_free(model)


class _Log:
    """The last lines that llama.cpp printed."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def add(self, text: str) -> None:
        self.lines = [*self.lines[-19:], text]

    def text(self) -> str:
        return "".join(self.lines)


_log = _Log()


@cache
def _library() -> tuple[Any, Any]:
    ffi = _declarations()
    (binary,) = [f for f in files("xllamacpp") or [] if f.name.startswith("xllamacpp.abi3")]
    lib = ffi.dlopen(str(binary.locate()))
    _library.log = ffi.callback(  # type: ignore[attr-defined]  # it must live on
        "ggml_log_callback", lambda level, text, data: _log.add(ffi.string(text).decode())
    )
    lib.llama_log_set(_library.log, ffi.NULL)  # type: ignore[attr-defined]
    lib.llama_backend_init()
    return ffi, lib


def _declarations() -> Any:
    """The declarations, without the package around them, which wants another glibc."""
    named = [f for f in files("llama-cpp-py-sync") or [] if f.name == "_cffi_bindings.py"]
    spec = spec_from_file_location("llama_cpp_declarations", str(named[0].locate()))
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.ffi
