"""The tokenizer of a checkpoint; a clear error if there is none."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from q2n.errors import InputError, reason_of


def load_tokenizer(
    checkpoint: str | Path, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """The tokenizer in a checkpoint folder, or of a model on the hub.

    For some architectures transformers makes an empty tokenizer when the files are
    missing, which would turn any text into nothing: that is an error here.

    Raises:
        InputError: there is no tokenizer, or it has no words.
    """
    missing = (
        f"no tokenizer can be loaded from {str(checkpoint)!r}; copy the tokenizer files of the "
        "original model (tokenizer.json, tokenizer_config.json) into that folder"
    )
    try:
        tokenizer = AutoTokenizer.from_pretrained(checkpoint, trust_remote_code=trust_remote_code)
        words = set(tokenizer.get_vocab()) - set(tokenizer.get_added_vocab())
    except Exception as error:  # a bad tokenizer.json raises an Exception of no class of its own
        reason = " ".join(str(error).split())  # transformers' reasons have several lines
        raise InputError(f"{missing} ({type(error).__name__}: {reason})") from error
    if not words:
        raise InputError(missing)
    return tokenizer


def chat_text(tokenizer: PreTrainedTokenizerBase, messages: list[Any]) -> str:
    """A conversation as the model's chat template has it.

    Raises:
        InputError: the tokenizer has no template, or its template refuses the messages.
    """
    if getattr(tokenizer, "chat_template", None) is None:
        raise InputError(
            "a conversation, and the model's tokenizer has no chat template; give texts in its "
            "place, or a model that was trained on conversations"
        )
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False))
    except Exception as error:  # templates raise errors of any class
        raise InputError(
            f"the model's chat template refuses the conversation ({reason_of(error)})"
        ) from error


def shared_tokenizer(
    checkpoints: Sequence[Path], reference: Path, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """The first checkpoint's tokenizer, if token ids mean the same in all of them and in the
    reference.

    Raises:
        InputError: one has no tokenizer, or their vocabularies differ.
    """
    theirs = load_tokenizer(reference, trust_remote_code).get_vocab()
    tokenizers = [load_tokenizer(folder, trust_remote_code) for folder in checkpoints]
    for checkpoint, tokenizer in zip(checkpoints, tokenizers, strict=True):
        ours = tokenizer.get_vocab()
        if ours != theirs:
            differing = len(ours.items() ^ theirs.items())
            raise InputError(
                f"the tokenizers of {checkpoint} ({len(ours)} words) and of the reference "
                f"{reference} ({len(theirs)} words) differ in {differing} words: their predictions "
                "cannot be compared; give the model that was quantized as the reference"
            )
    return tokenizers[0]
