"""What travels with a model beside its weights: tokenizer, processor, templates, generation config.

The files are known by the names that transformers gives them: whatever else lies in the folder
stays there. They are read and parsed when the model is opened, so that what is written at the end
was seen at the start. A symbolic link is followed within the folder and, in the cache of the
Hugging Face hub, whose snapshots are links, to the blobs beside it; any other could bring a file of
the machine into a checkpoint that is given away.
"""

import json
from codecs import BOM_UTF8
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import GenerationConfig, PretrainedConfig, PreTrainedTokenizerBase

from q2n.errors import InputError, reason_of

GENERATION = "generation_config.json"

AUXILIARY_FILES = (
    GENERATION,
    # tokenizers
    "tokenizer.json",
    "tokenizer.[0-9]*.json",  # for a version of transformers
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "vocab.bpe",
    "merges.txt",
    "bpe.codes",
    "tokenizer.model",
    "tokenizer.model.v[0-9]*",  # Mistral's
    "tekken.json",
    "tiktoken.model",
    "spiece.model",
    "spm.model",
    "spm_char.model",
    "sentencepiece.model",
    "sentencepiece.bpe.model",
    "source.spm",
    "target.spm",
    # processors of images, sound and video
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "audio_tokenizer_config.json",
    # chat templates
    "chat_template.json",
    "chat_template.jinja",
    "additional_chat_templates/*.jinja",
)
"""What travels with a model unchanged."""

CODE_FILES = ("*.py", "*.model", "*.tiktoken")
"""What travels with it too where `trust_remote_code` is given: code, and the vocabularies that
tokenizers in code call what they like."""

CODE_POINTERS = ("auto_map", "custom_pipelines")
"""Entries of JSON files that name code."""


def auxiliary_patterns(trust_remote_code: bool) -> tuple[str, ...]:
    """Names of what travels with the weights; code only if it may run."""
    return (*AUXILIARY_FILES, *(CODE_FILES if trust_remote_code else ()))


@dataclass(frozen=True)
class AuxiliaryFiles:
    """Files of a model's folder other than weights and config.json."""

    contents: Mapping[str, bytes] = field(default_factory=dict)
    """By path in the folder."""
    without_code: tuple[str, ...] = ()
    """Those from which pointers to code were taken."""

    def notes(self, config: PretrainedConfig) -> list[str]:
        """What a user must know of a model with these files and this configuration, whose code
        does not travel."""
        own = ["config.json"] if drop_code(json.loads(config.to_json_string())) else []
        if not (names := [*own, *self.without_code]):
            return []
        return [
            "The model's own Python code does not come along, and the entries that name it were "
            f"left out of {', '.join(names)}; with --trust-remote-code both do"
        ]

    def __or__(self, other: "AuxiliaryFiles") -> "AuxiliaryFiles":
        """These and others."""
        return AuxiliaryFiles(
            {**self.contents, **other.contents}, self.without_code + other.without_code
        )

    def write(self, folder: Path) -> None:
        """Into another folder.

        Raises:
            OSError: the disk is full.
        """
        for name, content in self.contents.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(content)


def read_auxiliary(folder: Path, trust_remote_code: bool = False) -> AuxiliaryFiles:
    """What travels with the model in a folder. Without `trust_remote_code` neither code nor entries
    that name it do.

    Raises:
        InputError: a file cannot be read or is not what it is called, or a link leads out of the
            folder.
    """
    contents, without_code = {}, []
    for file in _files(folder, trust_remote_code):
        name = file.relative_to(folder).as_posix()
        contents[name] = _read(file, folder)
        if file.suffix == ".json":
            contents[name] = contents[name].removeprefix(BOM_UTF8)  # transformers cannot read it
            entries = _parsed(file, contents[name])
            if not trust_remote_code and drop_code(entries):
                without_code.append(name)
                contents[name] = _json(file, entries)
    return AuxiliaryFiles(contents, tuple(without_code))


def generation_file(config: GenerationConfig | None) -> AuxiliaryFiles:
    """The generation config of a model in memory, as it is: `save_pretrained` refuses values that
    many published ones have, such as a temperature without sampling."""
    if config is None:
        return AuxiliaryFiles()
    return AuxiliaryFiles({GENERATION: config.to_json_string().encode()})


def tokenizer_files(tokenizer: Any, trust_remote_code: bool = False) -> AuxiliaryFiles:
    """The files of a tokenizer in memory, as it saves them; none of an object of another kind.
    `trust_remote_code` as for `read_auxiliary`.

    Raises:
        InputError: it cannot be saved.
    """
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        return AuxiliaryFiles()
    with TemporaryDirectory() as place:
        try:
            tokenizer.save_pretrained(place)
        except Exception as cause:  # what tokenizers raise has no class of its own
            raise InputError(f"the tokenizer cannot be saved ({reason_of(cause)})") from cause
        return read_auxiliary(Path(place), trust_remote_code)


def drop_code(entries: Any) -> bool:
    """Take the entries that name code out of parsed JSON, at any depth; whether there were any."""
    found, waiting = False, [entries]
    while waiting:  # not by recursion: a file may nest as deep as it likes
        part = waiting.pop()
        if isinstance(part, dict):
            found |= any([part.pop(name) for name in CODE_POINTERS if part.get(name)])
            waiting.extend(part.values())
        elif isinstance(part, list):
            waiting.extend(part)
    return found


def _files(folder: Path, trust_remote_code: bool) -> Iterator[Path]:
    """Each once, links that lead nowhere too."""
    patterns = auxiliary_patterns(trust_remote_code)
    return iter(dict.fromkeys(file for p in patterns for file in sorted(folder.glob(p))))


def _read(file: Path, folder: Path) -> bytes:
    _require_own(file, folder)
    try:
        return file.read_bytes()
    except OSError as cause:
        raise InputError(f"{file} cannot be read ({cause}); fetch it again") from cause


def _require_own(file: Path, folder: Path) -> None:
    """Refuse what is no file, and a link to a file that is not the folder's."""
    try:
        real, root = file.resolve(), folder.resolve()
    except (OSError, RuntimeError) as cause:
        raise InputError(f"{file} is a link that leads nowhere ({cause}); remove it") from cause
    in_cache = root.parent.name == "snapshots"
    homes = [root, *([root.parent.parent / "blobs"] if in_cache else [])]
    if not any(real.is_relative_to(home) for home in homes):
        raise InputError(
            f"{file} is a link to {real}, outside the model's folder, and is not copied; "
            "put the file itself there, or remove the link"
        )
    if not real.is_file():
        raise InputError(f"{file} is not a file; remove it, or fetch the checkpoint again")


def _parsed(file: Path, content: bytes) -> dict[str, Any]:
    try:
        entries = json.loads(content.decode())
        if not isinstance(entries, dict):
            raise ValueError("not an object")
        if file.name == GENERATION:
            GenerationConfig.from_dict(entries)
    except (ValueError, TypeError, AttributeError, LookupError, RecursionError) as cause:
        raise InputError(
            f"{file} cannot be read as what it is called ({type(cause).__name__}: {cause}); "
            "fetch it again"
        ) from cause
    return entries


def _json(file: Path, entries: Mapping[str, Any]) -> bytes:
    try:
        return (json.dumps(entries, indent=2, ensure_ascii=False) + "\n").encode()
    except (RecursionError, UnicodeEncodeError) as cause:
        raise InputError(f"{file} cannot be written again ({cause}); fetch it again") from cause
