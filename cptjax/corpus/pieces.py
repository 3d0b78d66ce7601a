"""What readers of all formats share: how rows become documents, what a file is cut into, what is wrong with a row."""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from cptjax.command.errors import reason
from cptjax.command.escape import printable
from cptjax.corpus.encodings import converted, is_readable, word_of_windows
from cptjax.corpus.unpack import GrowthError, LengthError

PIECE_BYTES = 4 * 2**20


@dataclass(frozen=True)
class Reading:
    """How rows become documents."""

    has_options: ClassVar[bool] = True  # whether who reads can choose: advice then names options

    text_field: str = "text"  # column that holds the text
    id_field: str | None = None  # column that names a document; a name met again is an error
    weight_field: str | None = None  # column that says how often a pass shows a document
    fields: tuple[str, ...] = ()  # further columns that are wanted
    errors: Literal["strict", "replace"] = "strict"  # bytes not of the encoding, half surrogate pairs, NUL: or U+FFFD
    encoding: str = "utf-8"  # of text files; cp1252 is that of Windows and of many an Excel export
    delimiter: str | None = None  # between cells of .csv files; without it the one that the first row has
    txt_documents: Literal["file", "paragraph"] = "file"  # what a document of a .txt file is
    tsv_quotes: bool = False  # cells of .tsv files may be quoted, as those of .csv files

    def __post_init__(self):
        if self.errors not in ("strict", "replace"):
            raise ValueError(f"--errors is {self.errors!r}: it is strict or replace")
        if not is_readable(self.encoding):
            raise ValueError(
                f"--encoding is {self.encoding!r}: it is utf-8 or one of a byte a character, such as cp1252 or "
                "latin-1; convert files of another"
            )
        if self.delimiter is not None and (len(self.delimiter) != 1 or self.delimiter in '"\r\n'):
            raise ValueError(f"--delimiter is {self.delimiter!r}: it is one character, such as ;")
        if self.txt_documents not in ("file", "paragraph"):
            raise ValueError(f"--txt-documents is {self.txt_documents!r}: it is file or paragraph")


@dataclass(frozen=True)
class File:
    """One input. `name` is how messages and origins call it: the path from the source folder's parent on, or the
    data set's id. `path` opens it, `format` is a key of FORMATS, `size` is in bytes as it lies (perhaps packed),
    `split` one of a data set's."""

    name: str
    path: str
    format: str
    size: int
    split: str = ""


@dataclass(frozen=True)
class Piece:
    """Part of a file. `first_row`: number of its first line or row, from 1; `size`: about its bytes."""

    first_row: int
    payload: Any
    size: int


@dataclass(frozen=True)
class Bad:
    """A row, or the rest of a file or piece, that cannot be read; `message` says in one line where, what and why."""

    row: int
    message: str


class RowError(ValueError):
    """What is wrong with a row or a file, in one line that names it."""


Row = tuple[int, Callable[[], dict[str, Any]]]


def failure(file: File, error: BaseException, row: int | None = None) -> str:
    """What is wrong with a file, or with what begins at its `row`, in one line."""
    if isinstance(error, RowError):
        return str(error)
    if isinstance(error, LengthError):
        place = file.name if row is None else f"{file.name}:{row}"
        return f"{place} {error}: no document is so long; correct or cut it (what follows is not read)"
    if isinstance(error, GrowthError):
        return f"{file.name} {error}"
    if isinstance(error, MemoryError):
        return f"{file.name} cannot be read (it takes more memory than there is)"
    if isinstance(error, OSError) and error.errno:
        return f"{file.name} cannot be read ({os.strerror(error.errno)})"
    if isinstance(error, ImportError):
        return f"{file.name} cannot be read ({error}): install it"
    return f"{file.name} is cut or damaged ({reason(error)}): get it again"


# ---- text and columns


def decode(data: bytes, offset: int, where: str, reading: Reading) -> str:
    """Bytes that begin at `offset` as text. RowError says where they are not of the encoding."""
    try:
        return data.decode(reading.encoding, reading.errors)
    except UnicodeDecodeError as error:
        name = "UTF-8" if error.encoding == "utf-8" else reading.encoding
        advice = converted(data, error)
        if reading.has_options:
            word = word_of_windows(data, error)
            instead = f"give --encoding cp1252 if it should read {word}, else " * bool(word)
            advice = f"{instead}convert it, or give --errors replace"
        byte = f"byte {offset + error.start} (0x{data[error.start]:02x})"
        raise RowError(f"{where} is not {name} at {byte}: {advice}") from None


def wanted_columns(reading: Reading) -> dict[str, str]:
    """The columns to read, and what to do about one that is not there."""
    roles = {"--weight-field": reading.weight_field, "--id-field": reading.id_field, "--text-field": reading.text_field}
    advice = dict.fromkeys(reading.fields, "correct the name")
    named = {name: f"name yours with {flag}" for flag, name in roles.items() if name is not None}
    return advice | {name: how for name, how in named.items() if name not in advice}


def check_columns(where: str, there: Sequence[str], names: Iterable[str | None], reading: Reading) -> None:
    """Raise RowError where one of `names` is not there, or more than once."""
    for name in names:
        if name is None:
            continue
        if name not in there:
            has = ", ".join(printable(column) if column else "one without a name" for column in there) or "none"
            raise RowError(f"{where} has no field {name!r}: it has {has}; {wanted_columns(reading)[name]}")
        if there.count(name) > 1:
            raise RowError(f"{where} has {there.count(name)} fields {name!r}: give each a name of its own")
