"""Text that others wrote, such that it stays text wherever it is shown: a terminal, HTML, Markdown.

Names of files, columns, phases and models, rows, tokens and the words of errors may hold anything.
"""

import difflib
import html as escapes
import re
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from typing import TextIO

from tqdm import tqdm

JOINERS = "\u200c\u200d"  # invisible, but part of the spelling of Persian, of Indian scripts and of emoji
MARKUP = re.compile(
    r"[\\`*_\[\]<>&|~$#:@!]"
    r"|^[-+=]"  # a list, or the line below a heading
    r"|\.(?=[^\W\d])"  # www.example.org would become a link
)
MOST_LISTED = 10  # that a sentence names
NUMBERED = re.compile(r"^(\d{1,9})([.)])(?=\s|$)")  # a list


def printable(text: str, *, keep: str = "") -> str:
    """Text on one line, without characters that break lines, steer a terminal or hide: each as Python escapes it.

    Those of `keep` stay.
    """

    def shown(char: str) -> str:
        plain = char.isprintable() or char in keep or unicodedata.category(char) == "Zs"
        return char if plain else char.encode("unicode_escape").decode()

    return text if text.isprintable() else "".join(map(shown, text))


def say(text: str, *, stream: TextIO | None = None) -> None:
    """Print lines that steer no terminal, on stdout or `stream`, above a progress bar where there is one."""
    tqdm.write("\n".join(map(printable, text.split("\n"))), file=stream)
    (stream or sys.stdout).flush()


def listed(names: Sequence[str], *, most: int = MOST_LISTED, between: str = ", ") -> str:
    """The first of what a sentence names, and how many more there are. `between` is "; " where commas are in them."""
    more = len(names) - most
    return between.join(names[:most]) + (f"{between.strip(', ')} and {more:,} more" if more > 0 else "")


def nearest(name: str, known: Iterable[str]) -> str:
    """What is asked of a name that is unknown, such as " (did you mean --passes?)"; "" where none is near."""
    spelled = {_spelled(other): other for other in known}
    near = difflib.get_close_matches(_spelled(name), spelled, 1)
    return f" (did you mean {printable(spelled[near[0]])}?)" if near else ""


def _spelled(name: str) -> str:
    return name.lower().lstrip("-").replace("_", "-")


def html(text: str, *, keep: str = "") -> str:
    """Text as the content of an element or of a quoted attribute; `keep` as for `printable`."""
    return escapes.escape(printable(text, keep=keep))


def markdown(text: str) -> str:
    """Text as a piece of a line or as a cell of a table; spaces at the ends, which Markdown ignores, are left out."""
    return NUMBERED.sub(r"\1\\\2", MARKUP.sub(r"\\\g<0>", printable(text).strip()))


def code(text: str) -> str:
    """Text as code in a line, not in a table."""
    shown = printable(text)
    ticks = "`" * (1 + max(map(len, re.findall("`+", shown)), default=0))
    padded = shown.strip(" `") != shown and not shown.isspace()  # one space at each end is Markdown's
    return f"{ticks} {shown} {ticks}" if padded else f"{ticks}{shown}{ticks}"
