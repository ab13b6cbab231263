"""Texts in the tokens of one model: what a run calibrates on and measures."""

from functools import cached_property
from pathlib import Path
from typing import Any

from q2n.data.corpora import Corpus, Joined, load_corpus, takes_split
from q2n.data.documents import given_documents
from q2n.data.pieces import PieceTokenizer
from q2n.data.protocols import PROTOCOLS, ProtocolName, measured_split
from q2n.data.tokenizer import chat_text, load_tokenizer
from q2n.data.windows import TokenWindows, calibration_windows, evaluation_windows
from q2n.errors import InputError


class Texts:
    """Cuts texts into windows with one tokenizer, which is loaded when it is first needed."""

    def __init__(
        self,
        checkpoint: Path | None,
        tokenizer: Any = None,
        *,
        protocol: ProtocolName = "q2n",
        data_dir: str | None = None,
        trust_remote_code: bool = False,
        given: Any = None,
    ):
        """
        Args:
            checkpoint: folder that has the tokenizer; None where `tokenizer` is it.
            given: documents (`given_documents`) to calibrate on in the place of any corpus.
            protocol: by which texts are measured; in calibration it decides about BOS alone.
            data_dir: folder from which named corpora are read; None: from the hub.
        """
        self._checkpoint, self._tokenizer = checkpoint, tokenizer
        self._protocol, self._data_dir = protocol, data_dir
        self._trust_remote_code = trust_remote_code
        self._given = given

    def calibration(
        self,
        corpus: str,
        *,
        count: int,
        length: int,
        seed: int,
        longest: int | None = None,
        vocabulary: int | None = None,
    ) -> TokenWindows:
        """Windows at seeded random places of the training split.

        Raises:
            InputError: no such text, one that is too short, `length` above `longest`, the
                positions that the model has, or tokens that are not in its `vocabulary`.
        """
        require_positions(length, longest)
        windows = calibration_windows(
            self._calibration_corpus(corpus),
            self._load_tokenizer(),
            count=count,
            length=length,
            seed=seed,
            protocol=self._protocol,
        )
        return windows.within(vocabulary)

    def evaluation(
        self,
        corpus: str,
        *,
        length: int,
        limit: int | None = None,
        stride: int | None = None,
        split: str | None = None,
        longest: int | None = None,
        vocabulary: int | None = None,
    ) -> TokenWindows:
        """Windows as the protocol has them, of the split that it fixes or else of `split`.

        Raises:
            InputError: as `calibration`, or another split or a stride contradicts the protocol, or
                a split is asked for of a file.
        """
        require_positions(length, longest)
        text = load_corpus(
            corpus,
            measured_split(self._protocol, corpus, split),
            protocol=PROTOCOLS[self._protocol],
            data_dir=self._data_dir,
            chat=self._chat,
        )
        if split is not None and not takes_split(corpus):
            raise InputError(
                f"{corpus} takes no --split: a file is measured whole, a data set of the hub on "
                "the split in its name; leave --split out"
            )
        windows = evaluation_windows(
            text,
            self._load_tokenizer(),
            length,
            limit=limit,
            stride=stride,
            protocol=self._protocol,
        )
        return windows.within(vocabulary)

    def _calibration_corpus(self, name: str) -> Corpus:
        if self._given is None:
            return load_corpus(name, "train", data_dir=self._data_dir, chat=self._chat)
        return Corpus(label="texts given in Python", parts=Joined(self._documents))

    @cached_property
    def _documents(self) -> list[str]:
        """Those that were given, which can be gone through once only."""
        return given_documents(self._given, self._chat)

    @property
    def bos(self) -> int | None:
        """The BOS token, where the tokenizer puts it before a text by itself.

        Raises:
            InputError: there is no tokenizer, or it fails.
        """
        return PieceTokenizer(self._load_tokenizer()).bos

    def _chat(self, messages: list[Any]) -> str:
        return chat_text(self._load_tokenizer(), messages)

    def _load_tokenizer(self) -> Any:
        """The tokenizer."""
        if self._tokenizer is None:
            if self._checkpoint is None:
                raise InputError("a model object comes without its tokenizer: give tokenizer=...")
            self._tokenizer = load_tokenizer(self._checkpoint, self._trust_remote_code)
        return self._tokenizer


def require_positions(length: int, longest: int | None) -> None:
    """Refuse windows longer than the positions that a model has.

    Raises:
        InputError: naming both.
    """
    if longest is not None and length > longest:
        raise InputError(
            f"length {length} is more than the {longest} positions of the model; give "
            f"--length {longest} or less"
        )
