"""Documents of rows: what a row holds, and the text that it is.

A row has a "text". Where it has "messages" and no "text", it is a conversation: a list of objects
with "role" and "content", which the model's chat template makes a text.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from q2n.errors import InputError

TEXT, MESSAGES = "text", "messages"
"""What holds a document in a row."""
EMPTY: Mapping[str, Any] = {TEXT: "", MESSAGES: []}
"""What a row without a value has there, in a table whose other rows have one."""

Chat = Callable[[list[Any]], str]
"""The messages of a conversation -> its text; raises `InputError`."""


def text_of_row(row: Mapping[str, Any], where: str, chat: Chat | None) -> str:
    """The text of a row, or that of its conversation.

    Args:
        where: the row is, for messages.
        chat: None: conversations are refused.

    Raises:
        InputError: it holds neither, or the template refuses it.
    """
    text = row[TEXT] if TEXT in row else _conversation(row[MESSAGES], where, chat)
    if not isinstance(text, str):
        raise InputError(f'{where}: "{TEXT}" is {type(text).__name__}, not a string')
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON can spell one half of a surrogate pair
        raise InputError(f'{where}: "text" has half a character: {error}') from error
    return text


def _conversation(messages: Any, where: str, chat: Chat | None) -> str:
    if not isinstance(messages, list):
        raise InputError(f'{where}: "{MESSAGES}" is {type(messages).__name__}, not a list')
    if chat is None:
        raise InputError(f'{where}: a conversation, where only "{TEXT}" is read')
    try:
        return chat(messages)
    except InputError as cause:
        raise InputError(f"{where}: {cause}") from cause


def given_documents(texts: Any, chat: Chat) -> list[str]:
    """Documents that Python code gives: each a string, or the messages of a conversation.

    Raises:
        InputError: `texts` is no list of such; the message says where.
    """
    if isinstance(texts, str | bytes | Mapping) or not isinstance(texts, Iterable):
        raise InputError(f"texts is {type(texts).__name__}; give a list of strings")
    documents = []
    for number, text in enumerate(texts):
        row = {MESSAGES if isinstance(text, list) else TEXT: text}
        documents.append(text_of_row(row, f"texts[{number}]", chat))
    return documents
