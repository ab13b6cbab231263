"""Sizes of a base file."""

from dataclasses import dataclass

from q2n.evaluation.llama_cpp.records import record_type

MAGIC = b"_logits_"
HEADER = len(MAGIC) + 3 * 4
"""Bytes before the tokens."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What the header of a base file says, and what follows from it."""

    n_ctx: int
    """Tokens in a chunk."""
    n_vocab: int
    """Words: the rows of the model's head, padding included."""
    n_chunks: int

    @property
    def first(self) -> int:
        """The first scored position; the last is n_ctx - 2."""
        return self.n_ctx // 2

    @property
    def scored(self) -> int:
        """Scored positions in a chunk."""
        return self.n_ctx - 1 - self.first

    @property
    def records_start(self) -> int:
        """Bytes before the first record."""
        return HEADER + 4 * self.n_ctx * self.n_chunks

    @property
    def chunk_bytes(self) -> int:
        """Of the records of one chunk."""
        return self.scored * record_type(self.n_vocab).itemsize

    @property
    def file_bytes(self) -> int:
        """Of a whole file."""
        return self.records_start + self.n_chunks * self.chunk_bytes
