"""The tokenizer of a checkpoint; a clear error if there is none."""

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from q2n.errors import InputError


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


def require_same_words(checkpoint: Path, reference: Path, trust_remote_code: bool = False) -> None:
    """Refuse two checkpoints whose token ids mean different things.

    Raises:
        InputError: one has no tokenizer, or their vocabularies differ.
    """
    ours, theirs = (
        load_tokenizer(folder, trust_remote_code).get_vocab() for folder in (checkpoint, reference)
    )
    if ours != theirs:
        differing = len(ours.items() ^ theirs.items())
        raise InputError(
            f"the tokenizers of {checkpoint} ({len(ours)} words) and of the reference {reference} "
            f"({len(theirs)} words) differ in {differing} words: their predictions cannot be "
            "compared; give the model that was quantized as the reference"
        )
