"""Encodings that text files may have, and what to say where a file is of another."""

import codecs
import contextlib
import re

from cptjax.command.escape import printable

EVERY_BYTE = bytes(range(256))
SHOWN = 12  # bytes on either side of one that is no UTF-8
MISREAD = re.compile("[ÂÃÐÑâð][^\0-\x7f]+")  # letters, quotes, emoji in UTF-8 begin so


def is_utf8(encoding: str) -> bool:
    """Whether it is UTF-8 by any of its names."""
    return codecs.lookup(encoding).name == "utf-8"


def is_readable(encoding: str) -> bool:
    """Whether bytes can be cut at ASCII characters before they are decoded: UTF-8, or a byte a character."""
    try:
        text = EVERY_BYTE.decode(encoding, "replace")
    except (LookupError, ValueError):  # the first for a codec that makes no text, too
        return False
    return is_utf8(encoding) or (len(text) == len(EVERY_BYTE) and text[:128].encode() == EVERY_BYTE[:128])


def word_of_windows(data: bytes, error: UnicodeDecodeError) -> str:
    """The word in the encoding of Windows that what is no UTF-8 is a letter of, "" where it is of none."""
    first = max(0, error.start - SHOWN)
    with contextlib.suppress(UnicodeDecodeError):
        around = data[first : error.start + SHOWN].decode("cp1252")
        before, after = around[: error.start - first], around[error.start - first :]
        word = re.split(r"\W", before)[-1] + re.split(r"\W", after)[0]
        if error.encoding == "utf-8" and after[0].isalpha():
            return printable(word)
    return ""


def converted(data: bytes, error: UnicodeDecodeError) -> str:
    """Advice about what is not UTF-8, where no option reads it."""
    word = word_of_windows(data, error)
    return "convert it to UTF-8" + f", from cp1252 if it should read {word}" * bool(word)


def misread(text: str) -> tuple[str, str] | None:
    """The first letter of a text that is UTF-8 read as another encoding, and what it should be: ("Ã©", "é")."""
    for run in MISREAD.finditer(text):
        for encoding in ("cp1252", "latin-1"):
            with contextlib.suppress(UnicodeError):
                right = run[0].encode(encoding).decode()[0]
                return right.encode().decode(encoding), right
    return None
