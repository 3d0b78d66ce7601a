"""How files of each format are cut into pieces, cheaply and in the same places every time, and how a piece is read.

A format of FORMATS is two functions: one cuts a file into pieces, one turns a piece into (row, parse), where
parse() gives the row's columns by name or raises RowError. Text may be bytes. Files may be packed (`unpack.py`).
"""

import contextlib
import csv
import io
import itertools
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal

from cptjax.command.errors import reason
from cptjax.command.escape import printable
from cptjax.corpus import unpack
from cptjax.corpus.encodings import instead_of, is_readable, is_utf8
from cptjax.corpus.unpack import FAILURES, GrowthError, LengthError

VERSION = 3  # of what is read of a file: with another one all parts are made anew
PIECE_BYTES = 4 * 2**20
BYTE_ORDER_MARK = "\ufeff".encode()
DELIMITERS = (",", ";", "\t", "|")  # that are looked for in a .csv file's first row
BLANK_LINE = re.compile(rb"\n[ \t\r\v\f]*\n")


@dataclass(frozen=True)
class Reading:
    """How rows become documents."""

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
            raise ValueError(f"errors is {self.errors!r}: it is strict or replace")
        if not is_readable(self.encoding):
            raise ValueError(
                f"encoding is {self.encoding!r}: it is utf-8 or one of a byte a character, such as cp1252 or latin-1; "
                "convert files of another"
            )
        if self.delimiter is not None and (len(self.delimiter) != 1 or self.delimiter in '"\r\n'):
            raise ValueError(f"delimiter is {self.delimiter!r}: it is one character, such as ;")
        if self.txt_documents not in ("file", "paragraph"):
            raise ValueError(f"txt_documents is {self.txt_documents!r}: it is file or paragraph")


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
        raise RowError(
            f"{where} is not {name} at byte {offset + error.start} (0x{data[error.start]:02x}): "
            f"{instead_of(data, error)}convert it, or give --errors replace"
        ) from None


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


# ---- pieces


def _begin(file: File, reading: Reading) -> tuple[int, Iterator[bytes]]:
    """How long the byte order mark at the beginning is, and the content in chunks without it."""
    unpack.check_growth(file.path)
    stream = unpack.chunks(file.path)
    first = b""
    while len(first) < len(BYTE_ORDER_MARK) and (chunk := next(stream, b"")):
        first += chunk
    if first.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise RowError(f"{file.name} is UTF-16: convert it to UTF-8")
    if first.startswith(BYTE_ORDER_MARK) and not is_utf8(reading.encoding):
        raise RowError(f"{file.name} says that it is UTF-8, not {reading.encoding}: read it without --encoding")
    start = len(BYTE_ORDER_MARK) if first.startswith(BYTE_ORDER_MARK) else 0
    return start, itertools.chain([first[start:]] if first[start:] else [], stream)


def _line_end(data: bytearray, since: int) -> int:
    """Where a line ends, behind `since`; 0 when none does."""
    return data.find(b"\n", since) + 1


def _paragraph_end(data: bytearray, since: int) -> int:
    """Where a blank line ends, behind `since`; 0 when none does."""
    blank = BLANK_LINE.search(data, max(0, data.rfind(b"\n", 0, since)))
    return blank.end() if blank else 0


def _cut_lines(file: File, reading: Reading, end: Callable[[bytearray, int], int]) -> Iterator[Piece | Bad]:
    """Pieces of whole lines, each with its byte offset; none of blank lines only."""
    offset, stream = _begin(file, reading)
    held = bytearray()
    row = 1

    def taken(size: int) -> Iterator[Piece]:
        nonlocal offset, row
        data = bytes(held[:size])
        del held[:size]
        if data and not data.isspace():
            yield Piece(row, (offset, data), size)
        row, offset = row + data.count(b"\n"), offset + size

    try:
        for chunk in stream:
            since = max(PIECE_BYTES - 1, len(held))
            held += chunk
            while size := end(held, since):
                yield from taken(size)
                since = PIECE_BYTES - 1
            if len(held) > unpack.DOCUMENT_BYTES + PIECE_BYTES:
                raise LengthError(f"is longer than {unpack.limit()}")
    except FAILURES as error:  # what came whole before the damage is kept
        whole = 0
        while size := end(held, whole):
            whole = size
        yield from taken(whole)
        yield Bad(row, failure(file, error, row))
        return
    yield from taken(len(held))


def _grouped(file: File, units: Iterator[bytes], row: int) -> Iterator[Piece | Bad]:
    """Pieces of whole units, each of them a row."""
    held: list[bytes] = []
    size = 0
    failed = None
    try:
        for data in units:
            held.append(data)
            size += len(data)
            if size >= PIECE_BYTES:
                yield Piece(row, tuple(held), size)
                row, size = row + len(held), 0
                held.clear()
    except FAILURES as error:  # what came whole before the damage is kept
        failed = Bad(row + len(held), failure(file, error, row + len(held)))
    if held:
        yield Piece(row, tuple(held), size)
    if failed:
        yield failed


# ---- text


def _cut_txt(file: File, reading: Reading) -> Iterator[Piece | Bad]:
    check_columns(file.name, (reading.text_field,), wanted_columns(reading), reading)
    if reading.txt_documents == "file":
        yield Piece(1, None, file.size)
    else:
        yield from _cut_lines(file, reading, _paragraph_end)


def _read_txt(file: File, piece: Piece, reading: Reading) -> Iterator[Row]:
    if piece.payload is None:
        start, stream = _begin(file, reading)
        content = unpack.joined(stream)
        yield 1, lambda: {reading.text_field: decode(content, start, file.name, reading)}
        return
    offset, data = piece.payload
    if b"\n" not in data and b"\r\r" in data:
        raise RowError(f"{file.name} has lines that end in carriage returns only: end them with newlines")
    numbered = enumerate(io.BytesIO(data), piece.first_row)
    for blank, group in itertools.groupby(numbered, key=lambda pair: pair[1].isspace()):
        numbers, lines = zip(*group, strict=True)
        paragraph = b"".join(lines)
        if not blank:
            yield numbers[0], partial(_paragraph, paragraph, offset, file.name, reading)
        offset += len(paragraph)


def _paragraph(data: bytes, offset: int, where: str, reading: Reading) -> dict[str, Any]:
    return {reading.text_field: decode(data, offset, where, reading).rstrip("\r\n")}


# ---- JSON: lines, or values one after another and in arrays


def _cut_jsonl(file: File, reading: Reading) -> Iterator[Piece | Bad]:
    yield from _cut_lines(file, reading, _line_end)


def _read_jsonl(file: File, piece: Piece, reading: Reading) -> Iterator[Row]:
    offset, data = piece.payload
    for row, line in enumerate(io.BytesIO(data), piece.first_row):
        if not line.isspace():
            yield row, partial(_json_record, line, offset, f"{file.name}:{row}", "one object a line", reading)
        offset += len(line)


def _json_record(data: bytes, offset: int, where: str, needed: str, reading: Reading) -> dict[str, Any]:
    text = decode(data, offset, where, reading)
    pairs: list[tuple[str, Any]] = []

    def keep(members: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal pairs
        pairs = members  # the outermost object is the last to end
        return dict(members)

    try:
        record = json.loads(text, object_pairs_hook=keep)
    except ValueError as error:  # not only JSONDecodeError: a number of 5000 digits too
        fault = getattr(error, "msg", str(error))
        binary = "; it may be UTF-16 or binary" if "\0" in text else ""
        returns = "; its lines may end in carriage returns only" if "\r" in text.strip() else ""
        raise RowError(f"{where} is not JSON ({fault}): {needed}{binary}{returns}") from None
    except RecursionError:
        raise RowError(f"{where} is not JSON this deep: {needed}, and flat") from None
    if not isinstance(record, dict):
        raise RowError(f"{where} is not a JSON object: {needed} is needed")
    if len(pairs) > len(record):
        read = [name for name in wanted_columns(reading) if name in record]
        check_columns(where, [name for name, _ in pairs], read, reading)
    return record


def _cut_json(file: File, reading: Reading) -> Iterator[Piece | Bad]:
    yield from _grouped(file, _json_values(file, reading), row=1)


def _read_json(file: File, piece: Piece, reading: Reading) -> Iterator[Row]:
    for row, value in enumerate(piece.payload, piece.first_row):
        yield row, partial(_json_record, value, 0, f"{file.name}:{row}", "an object for each row", reading)


def _json_values(file: File, reading: Reading) -> Iterator[bytes]:
    """The values of a file of JSON one after another, those of arrays singly."""
    _, stream = _begin(file, reading)
    scan, space = json.JSONDecoder().raw_decode, re.compile(r"[ \t\r\n]*")
    text, at = "", 0  # bytes as Latin-1 characters: a chunk may end anywhere
    row = 1
    in_array = due = False  # due: a comma

    def more() -> bool:
        """As much again as is left, and whether there was any."""
        nonlocal text, at
        left, added = len(text) - at, bytearray()
        while len(added) <= left and (chunk := next(stream, b"")):
            added += chunk
        text, at = text[at:] + added.decode("latin-1"), 0
        if left > unpack.DOCUMENT_BYTES:
            raise LengthError(f"is longer than {unpack.limit()}")
        return bool(added)

    def wrong(fault: str) -> RowError:
        return RowError(f"{file.name}:{row} is not JSON ({fault}): what follows is not read")

    while True:
        at = space.match(text, at).end()  # type: ignore[union-attr]
        if at == len(text):
            if more():
                continue
            if in_array:
                raise wrong("its array is not closed")
            return
        if in_array and text[at] == "]":
            in_array = due = False
        elif in_array and due and text[at] == ",":
            due = False
        elif not in_array and text[at] == "[":
            in_array = True
        elif due:
            raise wrong("a comma is missing in its array")
        else:
            try:
                _, end = scan(text, at)
            except RecursionError:
                raise wrong("nested too deep") from None
            except ValueError as error:
                here = getattr(error, "pos", 0)
                unfinished = str(error).startswith("Unterminated string") or here > len(text) - 16
                if unfinished and more():
                    continue
                raise wrong(getattr(error, "msg", str(error))) from None
            if end == len(text) and more():
                continue
            yield text[at:end].encode("latin-1")
            at, row, due = end, row + 1, in_array
            continue
        at += 1


# ---- delimited text


def _cut_tsv(file: File, reading: Reading) -> Iterator[Piece | Bad]:
    if reading.tsv_quotes:
        yield from _cut_csv(file, reading, "\t")
        return
    offset, stream = _begin(file, reading)
    header = next(unpack.lines(stream), b"")
    columns = _tsv_cells(header, offset, f"{file.name}:1", reading)
    if any("\r" in name for name in columns):
        raise RowError(f"{file.name}:1 has lines that end in carriage returns only: end them with newlines")
    if f'"{reading.text_field}"' in columns:
        raise RowError(f"{file.name}:1 has names in quotes: give --tsv-quotes where cells are quoted")
    _check_header(file, columns, reading)
    for piece in _cut_lines(file, reading, _line_end):
        yield piece if isinstance(piece, Bad) else replace(piece, payload=(columns, *piece.payload))


def _tsv_cells(line: bytes, offset: int, where: str, reading: Reading) -> list[str]:
    return decode(line, offset, where, reading).removesuffix("\n").removesuffix("\r").split("\t")


def _read_tsv(file: File, piece: Piece, reading: Reading) -> Iterator[Row]:
    if reading.tsv_quotes:
        yield from _read_csv(file, piece, reading)
        return
    columns, offset, data = piece.payload
    for row, line in enumerate(io.BytesIO(data), piece.first_row):
        if row > 1 and line.strip(b"\r\n"):
            yield row, partial(_tsv_record, line, offset, f"{file.name}:{row}", reading, columns)
        offset += len(line)


def _tsv_record(line: bytes, offset: int, where: str, reading: Reading, columns: list[str]) -> dict[str, Any]:
    advice = "no cell may hold a tab or a line end; where cells are quoted give --tsv-quotes"
    return _record(where, columns, _tsv_cells(line, offset, where, reading), advice)


def _record(where: str, columns: list[str], cells: list[str], advice: str) -> dict[str, Any]:
    if len(cells) != len(columns):
        raise RowError(f"{where} has {len(cells)} cells, the header {len(columns)}: {advice}")
    return dict(zip(columns, cells, strict=True))


def _check_header(file: File, columns: list[str], reading: Reading) -> None:
    if not any(columns):
        raise RowError(f"{file.name}:1 is nothing: a first row that names the columns is needed")
    check_columns(file.name, columns, wanted_columns(reading), reading)


def _csv_rows(lines: Iterable[bytes], delimiter: str, line: int) -> Iterator[tuple[bytes, list[str] | csv.Error]]:
    """Each row's bytes, and its cells (bytes as Latin-1 characters, so that any cut finds the same rows).

    `line` is the number of the first line. LengthError for a row longer than DOCUMENT_BYTES.
    """
    csv.field_size_limit(2 * unpack.DOCUMENT_BYTES)
    taken = bytearray()

    def characters() -> Iterator[str]:
        for data in lines:
            taken.extend(data)
            if len(taken) > unpack.DOCUMENT_BYTES:
                opened = _opening_line(taken, line)
                raise LengthError(f"is longer than {unpack.limit()} (a quote opens on line {opened}: is it closed?)")
            yield data.decode("latin-1")

    parser = csv.reader(characters(), delimiter=delimiter, strict=True)
    while True:
        try:
            cells = next(parser)
        except StopIteration:
            return
        except csv.Error as error:
            cells = error
            if str(error).startswith("unexpected end of data"):
                cells = csv.Error(f"a quote that opens on line {_opening_line(taken, line)} is never closed")
            elif str(error).startswith("new-line character seen"):
                cells = csv.Error("a carriage return stands outside quotes")
        yield bytes(taken), cells
        line += taken.count(b"\n")
        taken.clear()


def _opening_line(data: bytearray, first: int) -> int:
    """The line of the quote that is open at the end: behind it quotes stand in pairs only."""
    odd = (run.start() for run in re.finditer(rb'"+', data) if len(run[0]) % 2)
    return first + data.count(b"\n", 0, max(odd, default=0))


def _delimiter_of(file: File, reading: Reading) -> str:
    """What stands between the cells of a file's first row: what makes the wanted columns of it, else most columns."""

    def columns(delimiter: str) -> list[str]:
        offset, stream = _begin(file, reading)
        raw, cells = next(_csv_rows(unpack.lines(stream), delimiter, 1), (b"", []))
        with contextlib.suppress(RowError):
            return _csv_cells(raw, cells, offset, "", reading)
        return []

    wanted = wanted_columns(reading)
    return max(DELIMITERS, key=lambda delimiter: (wanted.keys() <= {*columns(delimiter)}, len(columns(delimiter))))


def _cut_csv(file: File, reading: Reading, delimiter: str | None = None) -> Iterator[Piece | Bad]:
    delimiter = delimiter or reading.delimiter or _delimiter_of(file, reading)
    offset, stream = _begin(file, reading)
    rows = _csv_rows(unpack.lines(stream), delimiter, 1)
    raw, cells = next(rows, (b"", []))
    columns = _csv_cells(raw, cells, offset, f"{file.name}:1", reading)
    _check_header(file, columns, reading)
    offset, line = offset + len(raw), 1 + raw.count(b"\n")
    for piece in _grouped(file, (row for row, _ in rows), row=2):
        if isinstance(piece, Bad):
            yield piece
            continue
        data = b"".join(piece.payload)
        yield replace(piece, payload=(columns, offset, line, data, delimiter))
        offset, line = offset + len(data), line + data.count(b"\n")


def _read_csv(file: File, piece: Piece, reading: Reading) -> Iterator[Row]:
    columns, offset, line, data, delimiter = piece.payload
    for row, (raw, cells) in enumerate(_csv_rows(io.BytesIO(data), delimiter, line), piece.first_row):
        if cells != []:
            yield row, partial(_csv_record, raw, cells, offset, f"{file.name}:{row}", reading, columns)
        offset += len(raw)


def _csv_cells(raw: bytes, cells: list[str] | csv.Error, offset: int, where: str, reading: Reading) -> list[str]:
    if isinstance(cells, csv.Error):
        raise RowError(f'{where} is not CSV ({cells}): cells with quotes or line ends are "quoted", quotes in them ""')
    decode(raw, offset, where, reading)  # says where in the file a byte is wrong
    return [cell.encode("latin-1").decode(reading.encoding, "replace") for cell in cells]


def _csv_record(
    raw: bytes, cells: list[str] | csv.Error, offset: int, where: str, reading: Reading, columns: list[str]
) -> dict[str, Any]:
    values = _csv_cells(raw, cells, offset, where, reading)
    return _record(where, columns, values, "quote cells that hold a delimiter, or name another with --delimiter")


# ---- Parquet


def _cut_parquet(file: File, reading: Reading) -> Iterator[Piece | Bad]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(file.path) as table:
        check_columns(file.name, table.schema_arrow.names, wanted_columns(reading), reading)
        row = 1
        for group in range(table.num_row_groups):
            about = table.metadata.row_group(group)
            unpack.check_size(about.total_byte_size, file.size)
            yield Piece(row, group, about.total_byte_size)
            row += about.num_rows


def _read_parquet(file: File, piece: Piece, reading: Reading) -> Iterator[Row]:
    import pyarrow.parquet

    columns = list(wanted_columns(reading))
    with pyarrow.parquet.ParquetFile(file.path) as table:
        rows = table.metadata.row_group(piece.payload).num_rows
        cell = _dictionary_bytes(file, piece.payload, columns)
        at_once = max(1, min(PIECE_BYTES * rows // max(piece.size, 1), unpack.DOCUMENT_BYTES // max(cell, 1)))
        batches = table.iter_batches(at_once, row_groups=[piece.payload], columns=columns)
        records = itertools.chain.from_iterable(map(_arrow_records, batches))
        yield from ((row, partial(dict, record)) for row, record in enumerate(records, piece.first_row))


def _dictionary_bytes(file: File, group: int, columns: list[str]) -> int:
    """Bytes of the largest dictionary of a row group: of any of its cells, which many rows may repeat."""
    import pyarrow
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(file.path) as table:
        text = [name for name in columns if table.schema_arrow.field(name).type in (pyarrow.string(), pyarrow.binary())]
    with pyarrow.parquet.ParquetFile(file.path, read_dictionary=text) as table:
        first = next(table.iter_batches(1, row_groups=[group], columns=columns), None)
        cells = [] if first is None else first.columns
        return max((c.dictionary.nbytes for c in cells if pyarrow.types.is_dictionary(c.type)), default=0)


def _arrow_records(table: Any) -> Iterator[dict[str, Any]]:
    import pyarrow

    columns = []
    for column in table.columns:
        if pyarrow.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        if str(column.type) in ("string", "large_string", "string_view"):
            column = column.cast(pyarrow.large_binary())  # Arrow does not see to it that strings are UTF-8: `_value`
        columns.append(column.to_pylist())
    for values in zip(*columns, strict=True):
        yield dict(zip(table.schema.names, values, strict=True))


# ---- data sets


@dataclass(frozen=True)
class _DataSet:
    """An opened data set: `read(first, last, columns)` gives records, `files` hold them (none: `fingerprint` tells)."""

    rows: int
    columns: list[str]
    size: int
    files: list[str]
    fingerprint: str
    read: Callable[[int, int, list[str]], Iterable[dict[str, Any]]]


@lru_cache(8)
def _hf(path: str, split: str) -> _DataSet:
    """A Hugging Face data set: saved in a folder, a folder of data files, or OWNER/NAME[/CONFIG] of the Hub."""
    import datasets

    if (Path(path) / "state.json").is_file():
        dataset: Any = datasets.load_from_disk(path)
    else:
        parts = [path] if Path(path).exists() else path.split("/", 2)
        dataset = datasets.load_dataset("/".join(parts[:2]), *parts[2:], split=split)

    def read(first: int, last: int, columns: list[str]) -> Iterator[dict[str, Any]]:
        return _arrow_records(dataset.select_columns(columns).with_format("arrow")[first:last])

    size = dataset.data.nbytes * len(dataset) // max(dataset.data.num_rows, 1)
    files = [cached["filename"] for cached in dataset.cache_files]
    return _DataSet(len(dataset), dataset.column_names, size, files, dataset._fingerprint, read)


@lru_cache(8)
def _tfds(path: str, split: str) -> _DataSet:
    """A prepared tensorflow-datasets folder or name, without TensorFlow."""
    import tensorflow_datasets

    folder = (Path(path) / "features.json").is_file()
    builder: Any = (tensorflow_datasets.builder_from_directory if folder else tensorflow_datasets.builder)(path)
    try:
        source = builder.as_data_source(split=split)
    except NotImplementedError:  # its files are tfrecord, or would be: it is not prepared
        raise ValueError('it must be prepared with file_format="array_record"') from None

    def read(first: int, last: int, _: list[str]) -> Iterable[dict[str, Any]]:
        return source.__getitems__(range(first, last))

    files = [str(file) for file in builder.info.splits[split].filepaths]
    return _DataSet(len(source), list(builder.info.features), sum(map(os.path.getsize, files)), files, "", read)


def _cut_data_set(file: File, reading: Reading) -> Iterator[Piece | Bad]:
    data_set = DATA_SETS[file.format](file.path, file.split)
    check_columns(file.name, data_set.columns, wanted_columns(reading), reading)
    step = max(1, PIECE_BYTES * data_set.rows // max(data_set.size, 1))
    for first in range(0, data_set.rows, step):
        last = min(first + step, data_set.rows)
        yield Piece(first + 1, (first, last), data_set.size * (last - first) // data_set.rows)


def _read_data_set(file: File, piece: Piece, reading: Reading) -> Iterator[Row]:
    first, last = piece.payload
    records = DATA_SETS[file.format](file.path, file.split).read(first, last, list(wanted_columns(reading)))
    yield from ((row, partial(dict, record)) for row, record in enumerate(records, piece.first_row))


DATA_SETS = {"hf": _hf, "tfds": _tfds}
FORMATS: dict[str, tuple[Callable[..., Iterator[Piece | Bad]], Callable[..., Iterator[Row]]]] = {
    ".txt": (_cut_txt, _read_txt),
    ".jsonl": (_cut_jsonl, _read_jsonl),
    ".json": (_cut_json, _read_json),
    ".csv": (_cut_csv, _read_csv),
    ".tsv": (_cut_tsv, _read_tsv),
    ".parquet": (_cut_parquet, _read_parquet),
    "hf": (_cut_data_set, _read_data_set),
    "tfds": (_cut_data_set, _read_data_set),
}
NAMED = {suffix: suffix for suffix in FORMATS if suffix.startswith(".")} | {".ndjson": ".jsonl"}


def format_of(path: Path) -> str | None:
    """The format of a file by its name, but for .gz or .zst, or its content where that says nothing or .json.

    None for what is neither; no error.
    """
    name = path.name.lower()
    plain = name.removesuffix(".gz").removesuffix(".zst")
    known = next((named for suffix, named in NAMED.items() if plain.endswith(suffix)), None)
    if known not in (None, ".json"):
        return known
    try:
        stream = unpack.chunks(str(path))
        first = next(stream, b"").removeprefix(BYTE_ORDER_MARK).lstrip()
        if known is None and first.startswith(b"PAR1"):
            return ".parquet"
        line = next(unpack.lines(itertools.chain([first], stream)), b"").strip() if first.startswith(b"{") else b""
        is_row = line.endswith(b"}") and (known or isinstance(json.loads(line), dict))
        return ".jsonl" if is_row else known
    except (*FAILURES, RecursionError):
        return known
