"""Text that stands in Markdown as it is: labels of plans, patterns of layers, names of files."""

import re

_MARKS = re.compile(
    r"[\\|*<`~$]"  # of a table, emphasis, HTML, code, strikethrough, a formula
    r"|(?<![^\W_])_|_(?![^\W_])"  # within a word it is no emphasis
    r"|\[(?=[^]]*\]\()"  # of a link
    r"|&(?=#?\w+;)"  # of a character by its name
)


def in_markdown(text: str) -> str:
    """In one line, in a paragraph or in a cell of a table."""
    return _MARKS.sub(r"\\\g<0>", " ".join(text.split()))
