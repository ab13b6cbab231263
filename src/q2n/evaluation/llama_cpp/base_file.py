"""The file in which `llama-perplexity --kl-divergence-base FILE` keeps a base model's log
probabilities. Little-endian:

    8 bytes                  "_logits_"
    int32                    n_ctx
    int32                    n_vocab
    int32                    n_chunks
    int32 [n_chunks, n_ctx]  tokens: those of the text, also where a model is given BOS instead
    records                  of the scored positions of each chunk (`records.py`)

llama-perplexity itself only warns of another vocabulary and reads on, and its writer checks
nothing: here sizes and tokens are checked before any work.
"""

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Self

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from q2n.data.windows import TokenWindows
from q2n.disk.failures import reason
from q2n.disk.space import require_space
from q2n.errors import InputError
from q2n.evaluation.llama_cpp.layout import HEADER, MAGIC, Layout
from q2n.evaluation.llama_cpp.records import encode, record_type
from q2n.evaluation.llama_cpp.scored_logits import ChunkLogits, scored_logits

WRITE_ANOTHER = (
    "write it with `q2n eval MODEL --protocol llama.cpp --save-kl-base FILE` or "
    "`llama-perplexity --kl-divergence-base FILE`"
)
"""What to do about a file that cannot be used."""


@dataclass(frozen=True, kw_only=True, eq=False)
class BaseFile:
    """A base file that was looked through, except for its log probabilities."""

    path: Path
    layout: Layout
    tokens: Int64[Tensor, "chunks n_ctx"]

    @classmethod
    def open(cls, path: Path) -> Self:
        """Read and check the header and the tokens.

        Raises:
            InputError: there is no such file; it is of another kind, cut off or damaged.
        """
        try:
            with path.open("rb") as stream:
                size = os.fstat(stream.fileno()).st_size
                layout = _read_layout(path, stream, size)
                read = np.fromfile(stream, "<i4", layout.n_chunks * layout.n_ctx)
        except OSError as cause:
            raise InputError(f"{path} cannot be read ({reason(cause)})") from cause
        tokens = torch.from_numpy(read.astype(np.int64)).view(layout.n_chunks, layout.n_ctx)
        _require_words(str(path), tokens, layout.n_vocab)
        return cls(path=path, layout=layout, tokens=tokens)

    def require_vocabulary(self, n_vocab: int) -> None:
        """Refuse a model with another vocabulary.

        Args:
            n_vocab: rows of the model's head.

        Raises:
            InputError: with both sizes.
        """
        if n_vocab != self.layout.n_vocab:
            raise InputError(
                f"the model has {n_vocab} words and {self.path} is of a model with "
                f"{self.layout.n_vocab}; KL divergence needs the same vocabulary"
            )

    def windows(self, bos: int | None) -> TokenWindows:
        """The chunks as a model gets them.

        Args:
            bos: the token that the tokenizer of the model puts before a text; None: it puts none.
        """
        tokens = self.tokens.clone()
        if bos is not None:
            tokens[:, 0] = bos
        return TokenWindows(tokens=tokens, label=str(self.path), protocol="llama.cpp")

    def chunk(self, index: int) -> np.ndarray:
        """The records of one chunk, one a scored position.

        Raises:
            InputError: the file was changed or damaged.
        """
        start = self.layout.records_start + index * self.layout.chunk_bytes
        kind = record_type(self.layout.n_vocab)
        try:
            records = np.fromfile(self.path, kind, self.layout.scored, offset=start)
        except OSError as cause:
            raise InputError(f"{self.path} cannot be read ({reason(cause)})") from cause
        self._require_numbers(records, index)
        return records

    def _require_numbers(self, records: np.ndarray, index: int) -> None:
        scale, lowest = records["scale"], records["min_log_prob"]
        sane = np.isfinite(scale) & (scale >= 0) & np.isfinite(lowest) & (lowest <= 0)
        if len(records) != self.layout.scored or not sane.all():
            raise InputError(
                f"chunk {index + 1} of {self.path} is damaged: its scales are no such numbers; "
                + WRITE_ANOTHER
            )


@torch.inference_mode()
def write_base(
    path: Path,
    tokens: Int64[Tensor, "chunks n_ctx"],
    n_vocab: int,
    logits: ChunkLogits,
    *,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Write the base file of a model. It has its name when it is complete.

    Args:
        path: a new file; it takes 2 bytes a word and scored position.
        tokens: the text in chunks, without BOS in place of their first tokens.
        n_vocab: rows of the model's head.
        logits: of the model for these tokens; asked for when the place is known to be good.
        progress: called after each chunk with 1.

    Raises:
        InputError: the file is there or cannot be written; chunks too short; a token that the
            model does not have; as `scored_logits`.
        NumericalError: as `scored_logits`.
    """
    layout = Layout(n_ctx=tokens.shape[1], n_vocab=n_vocab, n_chunks=len(tokens))
    _require_sizes("the text", layout)
    _require_words("the text", tokens, n_vocab)
    partial = path.with_name(path.name + ".partial")
    try:
        stream = _new_file(path, partial, layout)
        try:
            with stream:
                _write_header(stream, layout, tokens)
                for index, (_, pieces) in enumerate(zip(tokens, logits, strict=True)):
                    for few in scored_logits(pieces, layout, index):
                        stream.write(encode(few).tobytes())
                    if progress is not None:
                        progress(1)
            partial.rename(path)
        finally:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
    except OSError as cause:
        raise InputError(
            f"{path} cannot be written ({reason(cause)}); it takes "
            f"{layout.file_bytes / 1e9:.2f} GB: choose another --save-kl-base"
        ) from cause


def require_new(path: Path) -> None:
    """Refuse a place where no base file can appear.

    Raises:
        InputError: the file is there already, or its folder is not.
    """
    if os.path.lexists(path):
        raise InputError(f"{path} is there already; delete it or choose another --save-kl-base")
    if not path.parent.is_dir():
        raise InputError(
            f"{path} cannot be written: {path.parent} is no folder; choose another --save-kl-base"
        )


def _new_file(path: Path, partial: Path, layout: Layout) -> BinaryIO:
    require_new(path)
    require_space(path.parent, float(layout.file_bytes), "the base file takes", "--save-kl-base")
    try:
        return partial.open("xb")
    except FileExistsError as cause:
        raise InputError(
            f"{partial} is there: another run writes it, or was killed while it did; wait for it, "
            "or delete the file"
        ) from cause


def _write_header(stream: BinaryIO, layout: Layout, tokens: Int64[Tensor, "chunks n_ctx"]) -> None:
    stream.write(MAGIC)
    stream.write(np.array([layout.n_ctx, layout.n_vocab, layout.n_chunks], "<i4").tobytes())
    stream.write(tokens.cpu().numpy().astype("<i4").tobytes())


def _read_layout(path: Path, stream: BinaryIO, size: int) -> Layout:
    header = stream.read(HEADER)
    if not header.startswith(MAGIC) or len(header) < HEADER:
        raise InputError(
            f"{path} is no file of log probabilities: it does not begin with {MAGIC.decode()!r} "
            f"and three sizes; {WRITE_ANOTHER}"
        )
    n_ctx, n_vocab, n_chunks = np.frombuffer(header, "<i4", offset=len(MAGIC)).tolist()
    layout = Layout(n_ctx=n_ctx, n_vocab=n_vocab, n_chunks=n_chunks)
    _require_sizes(str(path), layout)
    if size != layout.file_bytes:
        raise InputError(_wrong_length(path, layout, size))
    return layout


def _require_sizes(what: str, layout: Layout) -> None:
    if layout.n_ctx < 3 or layout.n_vocab < 1 or layout.n_chunks < 1:
        raise InputError(
            f"{what} has {layout.n_chunks} chunks of {layout.n_ctx} tokens out of "
            f"{layout.n_vocab} words: it takes at least 1 chunk of 3 tokens"
        )


def _require_words(what: str, tokens: Int64[Tensor, "..."], n_vocab: int) -> None:
    wrong = tokens[(tokens < 0) | (tokens >= n_vocab)]
    if len(wrong):
        raise InputError(
            f"{what} has token {int(wrong[0])}, which is outside the vocabulary of {n_vocab}; "
            "the tokens belong to another model, or the file is damaged"
        )


def _wrong_length(path: Path, layout: Layout, size: int) -> str:
    whole = max(0, size - layout.records_start) // layout.chunk_bytes
    return (
        f"{path} has {size} bytes where its {layout.n_chunks} chunks take {layout.file_bytes}"
        + (f" (it ends after {whole} of them)" if size < layout.file_bytes else "")
        + f"; {WRITE_ANOTHER}"
    )
